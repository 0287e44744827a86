//! Whether a store can be used at all, before anything expensive is begun.

use bytes::Bytes;
use object_store::{PutMode, PutOptions, PutPayload};

use crate::error::{Error, Result};

use super::{Created, Store, object_path, run};

impl Store {
    /// Writes, creates, reads and deletes a small object, so that a wrong region, a missing bucket, missing rights and a
    /// store without create-if-absent are found now. Folders and memory need no such check.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] for missing rights, another region, and a store that publishing cannot rely on;
    /// [`crate::ErrorKind::NotFound`] for a missing bucket; [`crate::ErrorKind::Storage`] if it cannot be reached.
    pub fn preflight(&self) -> Result<()> {
        if !self.is_remote() {
            return Ok(());
        }
        let key = format!("preflight/{}", uuid::Uuid::new_v4().simple());
        let path = object_path(&key)?;
        let create = |body: &'static [u8]| {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            run(self.inner.backend.put_opts(&path, PutPayload::from(Bytes::from_static(body)), options))
        };
        // a plain write first: its errors are about the store, not about conditions
        self.put(&key, b"written".to_vec())?;
        let outcome = match create(b"created")? {
            Ok(_) => Err(Error::config(format!(
                "'{}' creates objects that exist already (or ignores the condition): it has no create-if-absent, which \
                 publishing rests on; use another store",
                self.uri()
            ))),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(()),
            Err(error) => Err(self.error("create", &key, error)),
        };
        let outcome = outcome.and_then(|()| match self.get(&key)? {
            Some(found) if found == b"written" => Ok(()),
            _ => Err(Error::storage(format!("'{}' does not hold what was written", self.uri_of(&key)))),
        });
        let deleted = self.delete(&key);
        outcome.and(deleted)?;
        match self.create_exact(&key, b"created".to_vec())? {
            Created::Won => self.delete(&key),
            Created::Lost(_) => {
                Err(Error::storage(format!("'{}' is still there after its deletion", self.uri_of(&key))))
            }
        }
    }
}
