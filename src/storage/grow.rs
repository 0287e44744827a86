//! Objects that grow while they are read: the one exception to objects that are visible whole or not at all.

use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

use super::Store;

impl Store {
    /// Makes `key` hold `whole`, of which an earlier call of the same writer has put the first `known` bytes.
    ///
    /// In a folder the rest is appended to the file in place, so that those who keep it open (`tail -f`, TensorBoard) see it
    /// grow; for a moment, or after a crash, they may see a part of what was appended. What is not as it was left is written
    /// anew. Stores that cannot append get the whole each time.
    ///
    /// # Errors
    /// As [`Store::put`]. What is there then is not known: pass 0 the next time.
    pub fn grow(&self, key: &str, whole: &[u8], known: usize) -> Result<()> {
        let Some(path) = self.local_path(key) else { return self.put(key, whole.to_vec()) };
        let as_left = |path: &Path| path.metadata().is_ok_and(|m| m.is_file() && m.len() == known as u64);
        match whole.get(known..) {
            Some(rest) if known > 0 && as_left(&path) => append(&path, rest),
            _ => self.put(key, whole.to_vec()),
        }
    }
}

fn append(path: &Path, rest: &[u8]) -> Result<()> {
    let appended = std::fs::File::options().append(true).open(path).and_then(|mut file| {
        file.write_all(rest)?;
        file.sync_data()
    });
    appended.map_err(|e| Error::io("append to", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_file_grows_in_place_and_is_written_anew_when_it_was_changed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        store.grow("a/b", b"one\n", 0).unwrap();
        let mut open = std::fs::File::open(folder.path().join("a/b")).unwrap();
        let mut seen = String::new();
        open.read_to_string(&mut seen).unwrap();
        store.grow("a/b", b"one\ntwo\n", 4).unwrap();
        open.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "one\ntwo\n");
        std::fs::write(folder.path().join("a/b"), "one\ntw").unwrap();
        store.grow("a/b", b"one\ntwo\nthree\n", 8).unwrap();
        assert_eq!(store.get("a/b").unwrap().unwrap(), b"one\ntwo\nthree\n");
        std::fs::remove_file(folder.path().join("a/b")).unwrap();
        store.grow("a/b", b"one\ntwo\nthree\nfour\n", 14).unwrap();
        assert_eq!(store.get("a/b").unwrap().unwrap(), b"one\ntwo\nthree\nfour\n");
    }

    #[test]
    fn stores_that_cannot_append_hold_the_whole() {
        let store = Store::in_memory();
        store.grow("a", b"one\n", 0).unwrap();
        store.grow("a", b"one\ntwo\n", 4).unwrap();
        assert_eq!(store.get("a").unwrap().unwrap(), b"one\ntwo\n");
    }
}
