//! The connection on which the database says that another server wrote.
//!
//! What it says is a hint, and so is its silence. A connection that is lost is made again after a pause,
//! and at once when the database is back from being away; whatever was notified meanwhile counts as heard.

use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures::future::{Either, select};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::target::{Target, runtime};
use crate::dialect::postgres::Listening;
use crate::dialect::tasks;
use crate::{News, StoreError};

/// How long to wait before a lost connection is made again, at first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(60)];

/// How long a connection must have held for the next pause to be short again.
const STEADY: Duration = Duration::from_secs(60);

/// How long a good-bye may take.
const FAREWELL: Duration = Duration::from_millis(200);

/// The thread that listens.
pub(crate) struct Listener {
    heard: watch::Receiver<u64>,
    closing: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread has.
struct Ear {
    target: Arc<Target>,
    /// What this server's own notifications say.
    mine: String,
    lifetime: Option<Duration>,
    heard: watch::Sender<u64>,
    stirred: watch::Receiver<u64>,
    closing: oneshot::Receiver<()>,
    pause: Duration,
    /// Whether the log's last word is that nothing is heard.
    is_deaf: bool,
}

/// Why a connection is listened to no more.
enum Ended {
    Closing,
    /// Something broke; in words.
    Lost(String),
    /// It is to be another one.
    Renewed,
}

impl Listener {
    /// Starts to listen to what others notify than `mine`.
    pub(crate) fn start(
        target: Arc<Target>,
        mine: String,
        lifetime: Option<Duration>,
    ) -> Result<Self, StoreError> {
        let (heard, hears) = watch::channel(0);
        let (close, closing) = oneshot::channel();
        let stirred = target.stirred();
        let [pause, _] = PAUSES;
        let ear = Ear { target, mine, lifetime, heard, stirred, closing, pause, is_deaf: false };
        let thread = tasks::spawn("store-listener", move || ear.run())?;
        Ok(Self { heard: hears, closing: Some(close), thread: Some(thread) })
    }

    /// What is heard from now on.
    pub(crate) fn news(&self) -> News {
        News::of(self.heard.clone())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.closing.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a datastore thread panicked");
        }
    }
}

impl Ear {
    fn run(mut self) {
        let mut wait = Duration::ZERO;
        loop {
            // What a broken connection leaves behind goes with its runtime.
            let ended = match runtime() {
                Ok(runtime) => runtime.block_on(self.once(wait)),
                Err(_) => return,
            };
            wait = match ended {
                Ended::Closing => return,
                Ended::Renewed => Duration::ZERO,
                Ended::Lost(why) => {
                    if !self.is_deaf {
                        self.is_deaf = true;
                        tracing::debug!(reason = why, "Not notified of other servers' changes");
                    }
                    self.pause
                }
            };
        }
    }

    /// One connection, after a pause.
    async fn once(&mut self, wait: Duration) -> Ended {
        if self.rest(wait).await.is_none() {
            return Ended::Closing;
        }
        let [first, most] = PAUSES;
        self.pause = (self.pause * 2).min(most);
        self.stirred.mark_unchanged();
        let target = Arc::clone(&self.target);
        let mut listening = match unless_closed(&mut self.closing, target.listen()).await {
            None => return Ended::Closing,
            Some(Err(why)) => return Ended::Lost(why),
            Some(Ok(listening)) => listening,
        };
        if std::mem::take(&mut self.is_deaf) {
            tracing::debug!("Notified of other servers' changes again");
        }
        let began = Instant::now();
        // What was notified while nobody listened.
        self.tell();
        let ended = self.listen(&mut listening).await;
        if began.elapsed() >= STEADY {
            self.pause = first;
        }
        // A database that does not hear it notices the closed socket.
        drop(timeout(FAREWELL, listening.leave()).await);
        ended
    }

    async fn listen(&mut self, listening: &mut Listening) -> Ended {
        let mut end = pin!(lasting(self.lifetime));
        loop {
            let mut stirred = self.stirred.clone();
            let broke = pin!(async { drop(stirred.changed().await) });
            let next = pin!(listening.next());
            let other = select(&mut end, broke);
            match unless_closed(&mut self.closing, select(next, other)).await {
                None => return Ended::Closing,
                Some(Either::Left((Ok(Some(whose)), _))) => {
                    if whose != self.mine {
                        self.tell();
                    }
                }
                Some(Either::Left((Ok(None), _))) => return Ended::Lost("connection lost".to_owned()),
                Some(Either::Left((Err(error), _))) => return Ended::Lost(error.to_string()),
                Some(Either::Right((Either::Left(_), _))) => return Ended::Renewed,
                Some(Either::Right((Either::Right(_), _))) => {
                    return Ended::Lost("another connection broke".to_owned());
                }
            }
        }
    }

    /// Waits for so long, and for a database that is away to be back; `None` if there is no more to do.
    async fn rest(&mut self, wait: Duration) -> Option<()> {
        unless_closed(&mut self.closing, sleep(wait)).await?;
        while self.target.is_away() {
            let [first, _] = PAUSES;
            self.pause = first;
            unless_closed(&mut self.closing, self.stirred.changed()).await?.ok()?;
        }
        Some(())
    }

    fn tell(&self) {
        self.heard.send_modify(|times| *times += 1);
    }
}

/// The end of a connection's life, if it has one.
async fn lasting(lifetime: Option<Duration>) {
    match lifetime {
        Some(lifetime) => sleep(lifetime).await,
        None => pending().await,
    }
}

/// Does this, unless the store is closed first.
async fn unless_closed<T>(closing: &mut oneshot::Receiver<()>, work: impl Future<Output = T>) -> Option<T> {
    match select(closing, pin!(work)).await {
        Either::Left(_) => None,
        Either::Right((done, _)) => Some(done),
    }
}
