//! The small JSON objects that the registry keeps.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::storage::Store;

/// The version of everything that the registry writes.
pub(super) const FORMAT_VERSION: u32 = 1;

/// The object at `key`; `None` if there is none.
pub(super) fn read<T: DeserializeOwned>(store: &Store, key: &str) -> Result<Option<T>> {
    match store.get(key)? {
        Some(bytes) => parse(store, key, &bytes).map(Some),
        None => Ok(None),
    }
}

pub(super) fn parse<T: DeserializeOwned>(store: &Store, key: &str, bytes: &[u8]) -> Result<T> {
    let uri = store.uri_of(key);
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|e| Error::data(format!("'{uri}' is damaged: it is not JSON, restore it")).with_source(e))?;
    match value.get("format_version").and_then(Value::as_u64) {
        Some(version) if version == u64::from(FORMAT_VERSION) => {}
        Some(version) if version > u64::from(FORMAT_VERSION) => {
            return Err(Error::data(format!(
                "'{uri}' has format version {version}; a newer medtune is needed to read it"
            )));
        }
        _ => return Err(Error::data(format!("'{uri}' is damaged: it has no valid format_version, restore it"))),
    }
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        Error::data(format!("'{uri}' is damaged at '{path}', restore it")).with_source(e.into_inner())
    })
}

pub(super) fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::internal("a registry record cannot be written as JSON").with_source(e))?;
    bytes.push(b'\n');
    Ok(bytes)
}
