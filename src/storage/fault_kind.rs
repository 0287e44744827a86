//! What kind of failure a store's error is: the whole chain of causes decides, since a full disk hides deep inside it.

use std::error::Error as StdError;

use crate::error::{Error, ErrorKind};

/// The error for a failed `action` ("read", "write") on the object at `uri`.
pub(super) fn storage_error(action: &str, uri: &str, source: object_store::Error) -> Error {
    let (kind, hint) = if no_space(&source) {
        (ErrorKind::NoSpace, ": no space left, free some and run the job again")
    } else {
        match &source {
            object_store::Error::NotFound { .. } => (ErrorKind::NotFound, ": it does not exist"),
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                (ErrorKind::Storage, ": access is refused, check the permissions")
            }
            _ => (ErrorKind::Storage, ""),
        }
    };
    Error::new(kind, format!("cannot {action} '{uri}'{hint}")).with_source(source)
}

/// Whether a full disk or an exhausted quota is among the causes of `error`.
fn no_space(error: &(dyn StdError + 'static)) -> bool {
    use std::io::ErrorKind as Io;
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            if matches!(io.kind(), Io::StorageFull | Io::QuotaExceeded) {
                return true;
            }
            // an io::Error that wraps another error skips it in `source`
            if let Some(inner) = io.get_ref() {
                cause = Some(inner);
                continue;
            }
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> object_store::Error {
        object_store::Error::Generic { store: "test", source: source.into() }
    }

    #[test]
    fn a_full_disk_is_found_at_any_depth() {
        let full = || std::io::Error::from_raw_os_error(28);
        let quota = std::io::Error::from_raw_os_error(122);
        for error in [
            generic(full()),
            generic(quota),
            generic(Box::new(generic(full())) as Box<dyn StdError + Send + Sync>),
            generic(std::io::Error::other(generic(full()))),
        ] {
            let error = storage_error("write", "file:///s/a", error);
            assert_eq!(error.kind(), ErrorKind::NoSpace);
            assert!(error.to_string().starts_with("cannot write 'file:///s/a': no space left"), "{error}");
        }
    }

    #[test]
    fn other_errors_keep_their_kind() {
        let denied = std::io::Error::from_raw_os_error(13);
        assert_eq!(storage_error("write", "u", generic(denied)).kind(), ErrorKind::Storage);
        let missing = object_store::Error::NotFound { path: "a".into(), source: "gone".into() };
        assert_eq!(storage_error("read", "u", missing).kind(), ErrorKind::NotFound);
    }
}
