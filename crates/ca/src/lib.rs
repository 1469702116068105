//! Issuing and authority slots: the only code that can mint a credential.
