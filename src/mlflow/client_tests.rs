//! Against a server of one's own that answers what it is told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::*;
use crate::ErrorKind;

/// Answers one request after the other, each with a status and a body, and keeps what it was sent.
fn serve(answers: Vec<(u16, &'static str)>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    std::thread::spawn(move || {
        for (status, body) in answers {
            let Ok((stream, _)) = listener.accept() else { return };
            let mut reader = BufReader::new(stream);
            let (mut request, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) <= 2 {
                    break;
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                request += &line;
            }
            let mut content = vec![0; length];
            reader.read_exact(&mut content).unwrap();
            log.lock().unwrap().push(request + "\n" + &String::from_utf8_lossy(&content));
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
            let location = if status == 302 { "Location: http://u:hunter2@other/x?t=hunter2\r\n" } else { "" };
            reader.get_mut().write_all(format!("{head}{location}\r\n{body}").as_bytes()).unwrap();
        }
    });
    (uri, seen)
}

fn client(uri: &str) -> Client {
    Client::new(&Mlflow::at(uri), &Credentials::Token("hunter2".to_owned())).unwrap()
}

#[test]
fn what_may_pass_is_tried_again_and_refusals_are_not() {
    let (uri, seen) = serve(vec![(503, "busy"), (429, ""), (200, r#"{"a": 1}"#)]);
    let client = client(&uri);
    assert_eq!(client.retry(|| client.get_once("runs/get", &[("run_id", "a b&c")])).unwrap()["a"], 1);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 3);
    assert!(seen[0].starts_with("GET /api/2.0/mlflow/runs/get?run_id=a+b%26c "), "{}", seen[0]);
    assert!(seen[0].to_ascii_lowercase().contains("authorization: bearer hunter2"), "{}", seen[0]);

    let (uri, seen) = serve(vec![(400, r#"{"error_code": "RESOURCE_ALREADY_EXISTS", "message": "m"}"#), (200, "{}")]);
    let fault = self::client(&uri).post("x/create", &serde_json::json!({})).unwrap_err();
    assert!(fault.exists() && fault.error.kind() == ErrorKind::Config, "{fault:?}");
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[test]
fn refusals_say_what_to_do() {
    let no_artifacts = "Endpoint disabled due to the mlflow server running in `--no-serve-artifacts` mode";
    for (status, body, wanted) in [
        (403, "Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts"),
        (403, "Permission denied", "may not do that"),
        (401, "You are not authenticated", "MLFLOW_TRACKING_TOKEN"),
        (
            400,
            r#"{"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid model version source"}"#,
            "source: upload",
        ),
        (503, no_artifacts, "--serve-artifacts"),
        (404, "<html>nothing here</html>", "this is no MLflow server"),
        (302, "", "redirects to 'http://other/x'"),
        (200, "<html>sign in</html>", "does not answer like an MLflow server"),
    ] {
        let (uri, _) = serve(vec![(status, body)]);
        let error = client(&uri).post("model-versions/create", &serde_json::json!({})).unwrap_err().into_error();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        let text = error.to_string();
        assert!(text.contains(wanted) && text.contains(&uri) && !text.contains("hunter2"), "{status}: {text}");
    }
}

#[test]
fn a_secret_that_the_server_repeats_is_not_shown() {
    let (uri, _) = serve(vec![(400, r#"{"message": "bad token\n hunter2"}"#)]);
    let text = client(&uri).get_once("x", &[]).unwrap_err().into_error().to_string();
    assert!(text.contains("bad token ***") && !text.contains("hunter2"), "{text}");
    assert!(!format!("{:?}", client(&uri)).contains("hunter2"));
}

#[test]
fn a_server_that_is_away_is_a_storage_error() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = client(&format!("http://{free}"));
    let fault = client.get_once("x", &[]).unwrap_err();
    assert!(fault.transient && fault.error.kind() == ErrorKind::Storage, "{fault:?}");
    assert!(fault.error.to_string().contains("is it up"), "{fault:?}");
}

#[test]
fn files_are_streamed_whole_to_encoded_paths() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    let content = "x".repeat((2 << 20) + 5);
    std::fs::write(&path, &content).unwrap();
    let (uri, seen) = serve(vec![(500, ""), (200, "{}")]);
    client(&format!("{uri}/prefix/")).upload("1/r/artifacts/a b.txt", &path).unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen[1].starts_with("PUT /prefix/api/2.0/mlflow-artifacts/artifacts/1/r/artifacts/a%20b.txt "));
    assert!(seen[0] == seen[1] && seen[1].ends_with(&format!("\n{content}")));
}
