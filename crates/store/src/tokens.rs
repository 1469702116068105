//! Join tokens. A token and its alias entry are one transaction; so are its use and the agent's rows
//! (see [`Store::attest_agent`]).

use std::fmt;

use spiffe::UnixSecs;

use crate::dialect::{Tx, int, text, values};
use crate::entries::{self, CreatedEntry, NewEntry};
use crate::{Committed, Store, StoreError};

/// A join token: a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Its text.
    pub token: String,
    /// When it runs out.
    pub expires_at: UnixSecs,
}

impl fmt::Debug for JoinToken {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

impl Store {
    /// Stores a token and, if given, the entry that names the agent which will use it.
    ///
    /// # Errors
    /// `AlreadyExists` for the token; for the entry as [`Store::create_entry`]. Then nothing is
    /// written.
    pub async fn create_join_token(
        &self,
        token: JoinToken,
        alias: Option<NewEntry>,
    ) -> Result<Committed<Option<CreatedEntry>>, StoreError> {
        self.write(move |tx| {
            if token.token.is_empty() || token.expires_at == UnixSecs(0) {
                return Err(StoreError::Database("token and expiry are required".to_owned()));
            }
            tx.conn.insert(
                "INSERT INTO join_tokens (created_at, updated_at, token, expiry) \
                 VALUES (?1, ?1, ?2, ?3)",
                values![tx.now, &token.token, token.expires_at.0],
            )?;
            alias.as_ref().map(|alias| entries::create(tx, alias)).transpose()
        })
        .await
    }

    /// A token, expired or not.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn fetch_join_token(&self, token: String) -> Result<Option<JoinToken>, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT token, expiry FROM join_tokens WHERE token == ?1";
            conn.first(sql, values![&token], |row| {
                Ok(JoinToken { token: text(row, 0)?, expires_at: UnixSecs(int(row, 1)?) })
            })
        })
        .await
    }

    /// Deletes a token.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_join_token(&self, token: String) -> Result<Committed<()>, StoreError> {
        self.write(move |tx| match consume(tx, &token)? {
            true => Ok(()),
            false => Err(StoreError::not_found()),
        })
        .await
    }

    /// Deletes the tokens that expired before `before`; how many.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn prune_join_tokens(&self, before: UnixSecs) -> Result<Committed<usize>, StoreError> {
        self.write(move |tx| tx.conn.execute("DELETE FROM join_tokens WHERE expiry < ?1", values![before.0]))
            .await
    }
}

/// Deletes a token; whether it was there. The number of rows decides who of several used it.
pub(crate) fn consume(tx: &Tx<'_>, token: &str) -> Result<bool, StoreError> {
    Ok(tx.conn.execute("DELETE FROM join_tokens WHERE token == ?1", values![token])? == 1)
}
