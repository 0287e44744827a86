//! Size and SHA-256 of files: what a file is known by everywhere in this crate.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// What a file's content is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileDigest {
    /// The size in bytes.
    pub size: u64,
    /// The SHA-256 of the content, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// Size and SHA-256 of content that comes in pieces.
#[derive(Default)]
pub(super) struct Hasher {
    size: u64,
    sha256: Sha256,
}

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        self.sha256.update(bytes);
    }

    pub(super) fn finish(self) -> FileDigest {
        FileDigest { size: self.size, sha256: hex(&self.sha256.finalize()) }
    }
}

/// The SHA-256 of `bytes`, as 64 lower-case hexadecimal digits.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Size and SHA-256 of the file at `path`, read in bounded memory.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] if there is none, [`crate::ErrorKind::Storage`] if it cannot be read.
pub fn sha256_file(path: &Path) -> Result<FileDigest> {
    let mut file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut buffer = vec![0; 1 << 20];
    let mut hasher = Hasher::default();
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", path, e)),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|d| char::from(DIGITS[usize::from(d)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of FIPS 180-2, appendix B.
    #[test]
    fn digests_are_those_of_the_standard() {
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let million = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(million.path(), vec![b'a'; 1_000_000]).unwrap();
        let digest = sha256_file(million.path()).unwrap();
        assert_eq!(digest.size, 1_000_000);
        assert_eq!(digest.sha256, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
        assert_eq!(sha256_file(Path::new("/no/such")).unwrap_err().kind(), crate::ErrorKind::NotFound);
    }
}
