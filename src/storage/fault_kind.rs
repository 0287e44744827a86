//! What kind of failure a store's error is: the whole chain of causes decides, since a full disk, a missing bucket or a wrong
//! region hide deep inside it.

use std::error::Error as StdError;

use crate::error::{Error, ErrorKind};
use crate::telemetry::secrets;

/// The error for a failed `action` ("read", "write") on the object at `uri`. The cause is kept as text without secrets.
pub(super) fn storage_error(action: &str, uri: &str, source: object_store::Error) -> Error {
    let (kind, hint) = classify(&source);
    let cause = chain(&source);
    let said = match hint {
        "" => cause,
        // what is known needs no page of XML
        _ => {
            tracing::debug!(uri, %cause, "{hint}");
            [hint, &answer(&cause)].concat()
        }
    };
    Error::new(kind, format!("cannot {action} '{uri}': {said}"))
}

const REFUSED: &str = "access is refused, check the rights of these credentials";

fn classify(source: &object_store::Error) -> (ErrorKind, &'static str) {
    if no_space(source) {
        return (ErrorKind::NoSpace, "no space left, free some and run the job again");
    }
    let text = chain(source);
    let says = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    if says(&["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist", "bucket does not exist"]) {
        return (ErrorKind::NotFound, "the bucket or container does not exist, create it or correct its name");
    }
    if says(&[
        "redirect without LOCATION",
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraint",
    ]) {
        return (ErrorKind::Config, "the bucket is in another region, set AWS_REGION to it");
    }
    if says(&["ExpiredToken", "RequestExpired", "token has expired"]) {
        return (ErrorKind::Storage, "the credentials have expired, renew them");
    }
    if says(&["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthenticationFailed"]) {
        return (ErrorKind::Config, "the store does not accept the credentials, check them");
    }
    if says(&["URL scheme is not allowed"]) {
        return (
            ErrorKind::Config,
            "plain HTTP must be allowed: set AWS_ALLOW_HTTP or AZURE_ALLOW_HTTP to true, or allow_http in store:",
        );
    }
    // of a listing, the crate does not say more than that it failed
    if says(&["status code: 403", "status code: 401"]) {
        return (ErrorKind::Config, REFUSED);
    }
    match source {
        object_store::Error::NotFound { .. } => (ErrorKind::NotFound, "it does not exist"),
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            (ErrorKind::Config, REFUSED)
        }
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => {
            (ErrorKind::Config, "the store cannot do this")
        }
        object_store::Error::InvalidPath { .. } => {
            (ErrorKind::Data, "there is an object with a name that cannot be used, rename it")
        }
        _ if says(&["error trying to connect", "tcp connect error", "dns error", "Connection refused"]) => {
            (ErrorKind::Storage, "the store cannot be reached, check the endpoint and the network")
        }
        _ => (ErrorKind::Storage, ""),
    }
}

/// Status and code of a server's answer, such as ` (403 Forbidden, AccessDenied)`; empty if there is none.
fn answer(cause: &str) -> String {
    let after = |start: &str, end: &str| {
        let rest = cause.split_once(start)?.1;
        Some(rest.split(end).next().unwrap_or(rest).trim().to_owned()).filter(|t| !t.is_empty() && t.len() < 60)
    };
    let found: Vec<String> = [after("status code: ", ":"), after("<Code>", "<")].into_iter().flatten().collect();
    if found.is_empty() { String::new() } else { format!(" ({})", found.join(", ")) }
}

/// An error and its causes on one line, without repetitions and without secrets.
pub(super) fn chain(error: &dyn StdError) -> String {
    let mut texts: Vec<String> = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        cause = error.source();
    }
    let line: Vec<&str> = texts.iter().flat_map(|t| t.split_whitespace()).collect();
    secrets::redact(&line.join(" ")).into_owned()
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
    fn causes_are_told_apart() {
        let denied = std::io::Error::from_raw_os_error(13);
        assert_eq!(storage_error("write", "u", generic(denied)).kind(), ErrorKind::Storage);
        let missing = |text: &str| object_store::Error::NotFound { path: "a".into(), source: text.into() };
        assert_eq!(storage_error("read", "u", missing("gone")).kind(), ErrorKind::NotFound);
        let region = "Received redirect without LOCATION, this normally indicates an incorrectly configured region";
        for (source, kind, telling) in [
            (
                missing("status code: 404 Not Found: <Error><Code>NoSuchBucket</Code>..."),
                ErrorKind::NotFound,
                "correct its name (404 Not Found, NoSuchBucket)",
            ),
            (generic(region), ErrorKind::Config, "AWS_REGION"),
            (
                object_store::Error::PermissionDenied { path: "a".into(), source: "403".into() },
                ErrorKind::Config,
                "access is refused",
            ),
            (generic("status code: 403 Forbidden: <Code>AccessDenied</Code>"), ErrorKind::Config, "refused"),
            (generic("builder error URL scheme is not allowed"), ErrorKind::Config, "AWS_ALLOW_HTTP"),
            (generic("<Code>ExpiredToken</Code>"), ErrorKind::Storage, "renew"),
            (generic("error sending request: tcp connect error: refused"), ErrorKind::Storage, "cannot be reached"),
        ] {
            let error = storage_error("list", "s3://b/x", source);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(telling), "{error}");
        }
    }
}
