//! Tasks of many users, of which each user has its turn.
//!
//! A thread takes the tasks that can go on in the order in which they were woken: behind a thousand of one
//! user's, those of all others wait for a thousand steps, and again with their own next step. Here users
//! are in a line, not tasks. Who is at its head has its tasks polled, the one that was woken first first,
//! until it has had its turn, and goes to the end if there are more. Who wanted nothing since the line went
//! round once comes before those who always want something, so a call now and then waits for little more
//! than the step that is being taken (after the flow queueing of RFC 8290, section 4).
//!
//! Steps are to be short: what a connection may read and write in one is the [`Allowance`] of it.
//!
//! All tasks are polled by one, the driver, which lives as long as there are any and hands the thread back
//! after a few steps. So they keep but one thread busy, whatever they are.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use futures::task::{ArcWake, waker_ref};

use crate::tasks::Group;

/// Tasks whose users take turns. Cheap to clone; clones are the same.
pub(crate) struct Turns<U>(Arc<Shared<U>>);

/// Who has turns.
pub(crate) trait Turning: Copy + Eq + Hash + Send + 'static {}

impl<U: Copy + Eq + Hash + Send + 'static> Turning for U {}

struct Shared<U> {
    line: Mutex<Line<U>>,
    group: Group,
    allowance: Allowance,
    /// Steps before the thread is handed back.
    at_once: usize,
}

/// How much may be read and written in the step that is being taken.
#[derive(Default)]
pub(crate) struct Allowance {
    to_read: AtomicUsize,
    to_write: AtomicUsize,
}

/// Who waits, and for what.
struct Line<U> {
    /// All users that have tasks, and where they are in `users`.
    known: HashMap<U, usize>,
    users: Slots<User<U>>,
    /// Those of them who want something after they wanted nothing.
    fresh: VecDeque<usize>,
    /// Those who have had a turn.
    busy: VecDeque<usize>,
    /// How much all of them want.
    steps: usize,
    /// Wakes the driver, where it waits.
    driver: Option<Waker>,
    is_driven: bool,
}

struct User<U> {
    id: U,
    tasks: usize,
    is_in_line: bool,
    /// How many steps are left of its turn.
    turn: usize,
    /// What can go on, in the order in which it was woken.
    ready: VecDeque<Step<U>>,
}

/// What a user does next.
enum Step<U> {
    Begin(usize, Work),
    GoOn(Arc<Task<U>>),
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What wakes a task.
struct Task<U> {
    /// Its user's place, and its own.
    user: usize,
    place: usize,
    /// It is in its user's line already, or has ended.
    is_woken: AtomicBool,
    shared: Arc<Shared<U>>,
}

/// Polls the tasks, which are its own: they end with it.
struct Driver<U> {
    shared: Arc<Shared<U>>,
    tasks: Slots<(Work, Arc<Task<U>>)>,
    has_ended: bool,
}

/// Values at places of their own, which are used again.
struct Slots<T> {
    places: Vec<Option<T>>,
    free: Vec<usize>,
}

/// What is left to do after a step.
enum Left {
    Steps,
    Waiting,
    Nothing,
}

impl<U: Turning> Turns<U> {
    /// No tasks yet; those to come are counted among the group's. The thread is handed back after so many
    /// steps.
    pub(crate) fn new(group: Group, at_once: usize) -> Self {
        Self(Arc::new(Shared { line: Mutex::default(), group, allowance: Allowance::default(), at_once }))
    }

    /// Starts a task of this user's. A panic ends it alone, and is logged with the name.
    pub(crate) fn spawn(&self, user: U, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let work = Box::pin(self.0.group.counted(name, task));
        let (driver, is_driven) = self.0.locked(|line| {
            let user = line.join(user);
            line.enter(user, Step::Begin(user, work));
            (line.driver.take(), std::mem::replace(&mut line.is_driven, true))
        });
        if let Some(driver) = driver {
            driver.wake();
        }
        if !is_driven {
            let shared = Arc::clone(&self.0);
            let driver = Driver { shared, tasks: Slots::default(), has_ended: false };
            self.0.group.spawn("turns", driver);
        }
    }

    /// What the step that is being taken may do.
    pub(crate) fn allowance(&self) -> &Allowance {
        &self.0.allowance
    }
}

impl<U> Clone for Turns<U> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<U> Shared<U> {
    fn locked<T>(&self, act: impl FnOnce(&mut Line<U>) -> T) -> T {
        act(&mut self.line.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<U: Turning> Line<U> {
    /// The place of the user, who has one more task.
    fn join(&mut self, id: U) -> usize {
        let new = || User { id, tasks: 0, is_in_line: false, turn: 0, ready: VecDeque::new() };
        let place = *self.known.entry(id).or_insert_with(|| self.users.insert(new()));
        if let Some(user) = self.users.get_mut(place) {
            user.tasks += 1;
        }
        place
    }

    /// The user wants to do this. Where nobody is any more it is left over from a task that has ended.
    fn enter(&mut self, user: usize, step: Step<U>) {
        let Some(found) = self.users.get_mut(user) else { return };
        found.ready.push_back(step);
        self.steps += 1;
        if !found.is_in_line {
            (found.is_in_line, found.turn) = (true, TURN);
            self.fresh.push_back(user);
        }
    }

    /// The next step of the user whose turn it is.
    fn next(&mut self) -> Option<Step<U>> {
        loop {
            let is_fresh = !self.fresh.is_empty();
            let line = if is_fresh { &mut self.fresh } else { &mut self.busy };
            let user = *line.front()?;
            let found = self.users.get_mut(user)?;
            if found.turn > 0
                && let Some(step) = found.ready.pop_front()
            {
                found.turn -= 1;
                self.steps -= 1;
                return Some(step);
            }
            line.pop_front();
            found.ready.shrink_to(found.ready.len().max(KEPT));
            // Who is fresh again as soon as it wants something would come before the busy for ever.
            found.is_in_line = !found.ready.is_empty() || is_fresh && !self.busy.is_empty();
            if found.is_in_line {
                found.turn = TURN;
                self.busy.push_back(user);
            }
        }
    }

    /// What is left for the driver, which is woken by `waker` where it is to wait.
    fn left(&mut self, waker: &Waker) -> Left {
        if self.steps > 0 {
            return Left::Steps;
        }
        if self.known.is_empty() {
            self.is_driven = false;
            return Left::Nothing;
        }
        self.driver = Some(waker.clone());
        Left::Waiting
    }

    /// A task of this user's has ended.
    fn leave(&mut self, user: usize) {
        let Some(found) = self.users.get_mut(user) else { return };
        found.tasks -= 1;
        if found.tasks > 0 {
            return;
        }
        // Tasks that have ended may have wanted more.
        self.steps -= found.ready.len();
        if found.is_in_line {
            self.fresh.retain(|one| *one != user);
            self.busy.retain(|one| *one != user);
        }
        self.known.remove(&found.id);
        self.users.remove(user);
    }
}

impl<U: Turning> ArcWake for Task<U> {
    fn wake_by_ref(task: &Arc<Self>) {
        if task.is_woken.swap(true, Ordering::AcqRel) {
            return;
        }
        let driver = task.shared.locked(|line| {
            line.enter(task.user, Step::GoOn(Arc::clone(task)));
            line.driver.take()
        });
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

impl<U: Turning> Future for Driver<U> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let driver = self.get_mut();
        for _ in 0..driver.shared.at_once {
            let ended = driver.shared.locked(Line::next).and_then(|step| driver.take(step));
            let left = driver.shared.locked(|line| {
                if let Some(user) = ended {
                    line.leave(user);
                }
                line.left(context.waker())
            });
            match left {
                Left::Steps => {}
                Left::Waiting => return Poll::Pending,
                Left::Nothing => {
                    driver.has_ended = true;
                    return Poll::Ready(());
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<U: Turning> Driver<U> {
    /// Takes a step. If a task has ended by it, whose it was.
    fn take(&mut self, step: Step<U>) -> Option<usize> {
        let (place, woken) = match step {
            Step::GoOn(task) => (task.place, Some(task)),
            Step::Begin(user, work) => {
                let (place, shared) = (self.tasks.next(), Arc::clone(&self.shared));
                let task = Task { user, place, is_woken: AtomicBool::new(true), shared };
                (self.tasks.insert((work, Arc::new(task))), None)
            }
        };
        let (work, task) = self.tasks.get_mut(place)?;
        // It may have been woken just before it ended.
        if woken.is_some_and(|woken| !Arc::ptr_eq(&woken, task)) {
            return None;
        }
        // What was done before it was woken is seen, also if it was woken twice.
        task.is_woken.swap(false, Ordering::AcqRel);
        self.shared.allowance.renew();
        if work.as_mut().poll(&mut Context::from_waker(&waker_ref(task))).is_pending() {
            return None;
        }
        task.is_woken.store(true, Ordering::Release);
        let user = task.user;
        self.tasks.remove(place);
        Some(user)
    }
}

impl<T> Slots<T> {
    /// Where the next value will be.
    fn next(&self) -> usize {
        self.free.last().copied().unwrap_or(self.places.len())
    }

    fn insert(&mut self, value: T) -> usize {
        let place = self.next();
        self.free.pop();
        match self.places.get_mut(place) {
            Some(free) => *free = Some(value),
            None => self.places.push(Some(value)),
        }
        place
    }

    fn get_mut(&mut self, place: usize) -> Option<&mut T> {
        self.places.get_mut(place)?.as_mut()
    }

    fn remove(&mut self, place: usize) {
        if self.places.get_mut(place).is_some_and(|taken| taken.take().is_some()) {
            self.free.push(place);
        }
        if self.free.len() == self.places.len() {
            self.places.clear();
            self.free.clear();
            self.places.shrink_to(KEPT);
            self.free.shrink_to(KEPT);
        }
    }
}

impl<U> Default for Line<U> {
    fn default() -> Self {
        Self {
            known: HashMap::default(),
            users: Slots::default(),
            fresh: VecDeque::default(),
            busy: VecDeque::default(),
            steps: 0,
            driver: None,
            is_driven: false,
        }
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<U> Drop for Driver<U> {
    fn drop(&mut self) {
        // With the thread's runtime. What wakes them later, or is woken as they are dropped, finds nobody.
        if !self.has_ended {
            drop(self.shared.locked(std::mem::take));
        }
    }
}

impl Allowance {
    /// How many bytes may be read.
    pub(crate) fn to_read(&self) -> usize {
        self.to_read.load(Ordering::Relaxed)
    }

    /// Whether anything may be written.
    pub(crate) fn may_write(&self) -> bool {
        self.to_write.load(Ordering::Relaxed) > 0
    }

    /// So many bytes, which were allowed, were read.
    pub(crate) fn read(&self, count: usize) {
        self.to_read.store(self.to_read().saturating_sub(count), Ordering::Relaxed);
    }

    /// So many bytes were written; the last piece may be longer than what was left.
    pub(crate) fn wrote(&self, count: usize) {
        let left = self.to_write.load(Ordering::Relaxed).saturating_sub(count);
        self.to_write.store(left, Ordering::Relaxed);
    }

    fn renew(&self) {
        self.to_read.store(READ, Ordering::Relaxed);
        self.to_write.store(WRITE, Ordering::Relaxed);
    }
}

/// Steps in a turn: about what it takes to answer a call on a new connection.
const TURN: usize = 8;

/// A first call is a few hundred bytes, those after it some fifty.
pub(crate) const READ: usize = 512;

/// A few answers.
pub(crate) const WRITE: usize = 4096;

/// Room for so many values is not given back.
const KEPT: usize = 64;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::sync::oneshot;
    use tokio_util::sync::CancellationToken;

    use super::*;

    type Log = Arc<Mutex<Vec<u32>>>;

    fn turns() -> (Turns<u32>, Group) {
        let group = Group::new(CancellationToken::new());
        (Turns::new(group.clone(), 4), group)
    }

    fn is_empty(line: &Line<u32>) -> bool {
        line.known.is_empty()
            && line.users.places.iter().all(Option::is_none)
            && line.fresh.is_empty()
            && line.busy.is_empty()
            && line.steps == 0
    }

    /// Takes so many steps, each noted with the user.
    fn steps(count: usize, user: u32, log: &Log) -> impl Future<Output = ()> + Send + 'static {
        let (mut left, log) = (count, Arc::clone(log));
        poll_fn(move |context| {
            log.lock().unwrap().push(user);
            left -= 1;
            context.waker().wake_by_ref();
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    #[tokio::test]
    async fn r00_a_user_with_many_tasks_has_as_many_turns_as_one_with_one() {
        let (turns, group) = turns();
        let log = Log::default();

        for _ in 0..1000 {
            turns.spawn(7, "many", steps(3, 7, &log));
        }
        turns.spawn(8, "one", steps(2 * TURN, 8, &log));
        turns.spawn(9, "one", steps(2 * TURN, 9, &log));
        group.ended().await;

        let log = log.lock().unwrap();
        let turns: Vec<u32> = log[..6 * TURN].chunks(TURN).map(|turn| turn[0]).collect();
        assert_eq!(turns, [7, 8, 9, 7, 8, 9]);
        assert_eq!((log.len(), log.iter().filter(|user| **user == 7).count()), (3000 + 4 * TURN, 3000));
    }

    #[tokio::test]
    async fn r00_who_wants_something_now_and_then_waits_for_one_step_of_the_busy() {
        let (turns, group) = turns();
        let log = Log::default();
        for _ in 0..1000 {
            turns.spawn(7, "many", steps(3, 7, &log));
        }
        let after = |count: usize| {
            let log = Arc::clone(&log);
            async move {
                while log.lock().unwrap().len() < count {
                    tokio::task::yield_now().await;
                }
            }
        };

        for _ in 0..3 {
            let count = log.lock().unwrap().len() + TURN + 2;
            after(count).await;
            turns.spawn(8, "one", steps(3, 8, &log));
        }
        group.ended().await;

        // All steps of a call in a row, however many others want theirs.
        let log = log.lock().unwrap();
        assert!(log.chunk_by(|one, next| one == next).filter(|run| run[0] == 8).all(|run| run.len() == 3));
        assert!(log.iter().rposition(|user| *user == 8).unwrap() < 1000);
    }

    #[tokio::test]
    async fn r00_who_always_comes_back_does_not_hold_up_the_busy() {
        let (turns, group) = turns();
        let log = Log::default();
        turns.spawn(7, "busy", steps(10 * TURN, 7, &log));
        let (again, noted) = (turns.clone(), Arc::clone(&log));

        // Never busy, and never away.
        let comes_back = async move {
            for _ in 0..1000 {
                again.spawn(8, "short", steps(1, 8, &noted));
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(comes_back, group.ended());

        let log = log.lock().unwrap();
        assert!(log.iter().rposition(|user| *user == 7).unwrap() < 40 * TURN);
    }

    #[tokio::test]
    async fn tasks_wait_until_they_are_woken_and_nothing_is_kept_of_their_users() {
        let (turns, group) = turns();
        let (tell, told) = oneshot::channel::<()>();
        let (answer, answered) = oneshot::channel();
        turns.spawn(7, "waits", async move { answer.send(told.await).unwrap() });
        turns.spawn(7, "fails", async { panic!("on purpose") });
        tokio::task::yield_now().await;

        tokio::task::spawn_blocking(|| tell.send(()).unwrap()).await.unwrap();

        assert_eq!(answered.await.unwrap(), Ok(()));
        group.ended().await;
        assert!(turns.0.locked(|line| is_empty(line) && !line.is_driven));
        turns.spawn(7, "another", async {});
        group.ended().await;
    }

    #[test]
    fn tasks_are_dropped_with_their_runtime_whoever_may_still_wake_them() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (turns, _group) = turns();
        let (held, mut dropped) = oneshot::channel::<()>();
        let kept: Arc<Mutex<Option<Waker>>> = Arc::default();
        let keep = Arc::clone(&kept);
        let waits = async move {
            let _held = held;
            poll_fn(|context| {
                *keep.lock().unwrap() = Some(context.waker().clone());
                Poll::<()>::Pending
            })
            .await;
        };
        runtime.block_on(async {
            turns.spawn(7, "waits", waits);
            tokio::task::yield_now().await;
        });

        drop(runtime);

        assert_eq!(dropped.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        kept.lock().unwrap().take().unwrap().wake();
        assert!(turns.0.locked(|line| is_empty(line)));
    }
}
