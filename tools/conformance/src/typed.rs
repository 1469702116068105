//! Streams of one type of message, waited for no longer than changes take.

use std::marker::PhantomData;

use bytes::Bytes;
use prost::Message;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::live::REACH;
use crate::wire::{Connection, code_of};

/// An open stream.
pub(crate) struct Typed<T> {
    answers: Streaming<Bytes>,
    of: PhantomData<T>,
}

impl<T: Message + Default> Typed<T> {
    /// Opens a stream with one request.
    pub(crate) async fn open(
        connection: &Connection,
        method: &str,
        request: &impl Message,
        header: &[(String, String)],
    ) -> Result<Self, String> {
        let opened = connection.open(method, vec![request.encode_to_vec().into()], header);
        let opened = timeout(REACH, opened).await.map_err(|_| format!("{method} does not begin"))?;
        Ok(Self { answers: opened.map_err(|status| told(&status))?, of: PhantomData })
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> Result<T, String> {
        let next = timeout(REACH, self.answers.message()).await.map_err(|_| "nothing comes".to_owned())?;
        let next = next.map_err(|status| told(&status))?.ok_or("the stream ends")?;
        T::decode(next).map_err(|why| why.to_string())
    }

    /// How it ends, whatever comes before.
    pub(crate) async fn refusal(&mut self) -> Result<Status, String> {
        let ended = async {
            loop {
                match self.answers.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Err("the stream ends well".to_owned()),
                    Err(status) => return Ok(status),
                }
            }
        };
        timeout(REACH, ended).await.map_err(|_| "the stream does not end".to_owned())?
    }
}

fn told(status: &Status) -> String {
    format!("{} {}", code_of(status), status.message())
}
