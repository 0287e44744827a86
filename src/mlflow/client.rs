//! One MLflow server: requests, retries, and refusals turned into messages that say what to do.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use bytes::BytesMut;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Body, Method, RequestBuilder, StatusCode, Url};
use serde_json::Value;
use tokio::io::AsyncReadExt;

use crate::config::mlflow::{Credentials, Mlflow};
use crate::error::{Error, Result};
use crate::telemetry::secrets;

/// How often a request is sent in all when its failure may pass.
const ATTEMPTS: u32 = 5;
/// The wait before the second attempt; doubled before each further one.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a request may take; an upload gets a second more for each megabyte.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer that is read.
const MAX_ANSWER: usize = 32 << 20;
/// How much of a server's message is shown, in characters.
const MAX_SHOWN: usize = 400;
/// What is read from a file at once.
const PART: usize = 1 << 20;

/// A client of one MLflow server. Calls are synchronous; they must not be made inside an asynchronous runtime.
pub struct Client {
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    base: Url,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("server", &self.server()).finish_non_exhaustive()
    }
}

/// Why a request did not succeed.
#[derive(Debug)]
pub(super) struct Fault {
    /// Whether the same request may succeed later.
    transient: bool,
    /// MLflow's name of the error, such as `RESOURCE_ALREADY_EXISTS`; empty if the server gave none.
    code: String,
    error: Error,
}

impl Fault {
    /// Whether what was to be made is there already.
    pub(super) fn exists(&self) -> bool {
        self.code == "RESOURCE_ALREADY_EXISTS"
    }

    /// Whether what was asked for is not there.
    pub(super) fn missing(&self) -> bool {
        self.code == "RESOURCE_DOES_NOT_EXIST"
    }

    /// What is said of it. No `From`: with a second way to this crate's error, `?` in other modules' closures would not
    /// know its type any more.
    pub(super) fn into_error(self) -> Error {
        self.error
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault { transient: false, code: String::new(), error }
    }
}

/// The result of one request.
pub(super) type Answer<T> = std::result::Result<T, Fault>;

impl Client {
    /// A client of the server that the section names; nothing is sent yet.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] for a section that [`Mlflow::check`] refuses, and where no TLS is to be had.
    pub fn new(section: &Mlflow, credentials: &Credentials) -> Result<Client> {
        section.check()?;
        crate::storage::tls::provide();
        let base = Url::parse(&section.tracking_uri)
            .map_err(|e| Error::config("mlflow.tracking_uri: write http://HOST:PORT or https://HOST").with_source(e))?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("medtune/", env!("CARGO_PKG_VERSION")))
            .default_headers(authorization(credentials)?)
            .connect_timeout(CONNECT)
            // a POST that is redirected arrives as a GET, and the token may go to another host
            .redirect(reqwest::redirect::Policy::none());
        if base.scheme() == "http" {
            // certificates are of no use, and a container without any must not be a reason to fail
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|e| {
            Error::config("mlflow: HTTPS is not available; are the system's CA certificates installed?").with_source(e)
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::internal("cannot start a runtime for the MLflow client").with_source(e))?;
        // a server may repeat what it was shown
        match credentials {
            Credentials::None => {}
            Credentials::Token(token) => secrets::remember(token),
            Credentials::Basic(user, password) => {
                secrets::remember(password);
                secrets::remember(&basic(user, password));
            }
        }
        Ok(Client { http, runtime, base })
    }

    /// The server's URI, for messages.
    #[must_use]
    pub fn server(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Host and port, as an `mlflow-artifacts://` URI names them.
    pub(super) fn authority(&self) -> &str {
        self.base.authority()
    }

    /// Calls an endpoint that reads, once.
    pub(super) fn get_once(&self, endpoint: &str, query: &[(&str, &str)]) -> Answer<Value> {
        let mut url = self.url(&["api", "2.0", "mlflow"], endpoint)?;
        url.query_pairs_mut().extend_pairs(query);
        self.json(endpoint, self.http.request(Method::GET, url))
    }

    /// Calls an endpoint that writes and may be called twice with the same effect, with retries.
    pub(super) fn post(&self, endpoint: &str, body: &Value) -> Answer<Value> {
        self.retry(|| self.post_once(endpoint, body))
    }

    /// Calls an endpoint that writes, once.
    pub(super) fn post_once(&self, endpoint: &str, body: &Value) -> Answer<Value> {
        let url = self.url(&["api", "2.0", "mlflow"], endpoint)?;
        self.json(endpoint, self.http.request(Method::POST, url).json(body))
    }

    /// Streams a file to the server's artifact proxy, with retries.
    pub(super) fn upload(&self, path: &str, file: &Path) -> Answer<()> {
        let url = self.url(&["api", "2.0", "mlflow-artifacts", "artifacts"], path)?;
        self.retry(|| {
            let (source, size) = self.runtime.block_on(open(file))?;
            let timeout = TIMEOUT + Duration::from_secs(size >> 20);
            let request = self
                .http
                .request(Method::PUT, url.clone())
                .timeout(timeout)
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_LENGTH, size)
                .body(stream(source));
            self.send("upload an artifact", request).map(drop)
        })
    }

    /// Tries until it succeeds, a failure cannot pass, or it was tried often enough.
    pub(super) fn retry<T>(&self, mut attempt: impl FnMut() -> Answer<T>) -> Answer<T> {
        let mut tried = 1;
        loop {
            match attempt() {
                Err(fault) if fault.transient && tried < ATTEMPTS => {
                    tracing::debug!(tried, server = %self.server(), error = %fault.error, "trying again");
                    // up to a quarter more, so that many jobs do not come back at the same moment
                    let random = u32::from(uuid::Uuid::new_v4().as_bytes()[0]);
                    let wait = FIRST_WAIT * (1 << (tried - 1));
                    std::thread::sleep(wait + wait * random / 1024);
                    tried += 1;
                }
                Err(mut fault) if fault.transient => {
                    fault.error = fault.error.context(format!("gave up after {tried} attempts"));
                    return Err(fault);
                }
                other => return other,
            }
        }
    }

    /// The URL of a path below `root`; segments are percent-encoded.
    fn url(&self, root: &[&str], path: &str) -> Result<Url> {
        let mut url = self.base.clone();
        {
            let no_base = |()| Error::config("mlflow.tracking_uri: write http://HOST:PORT or https://HOST");
            let mut segments = url.path_segments_mut().map_err(no_base)?;
            segments.pop_if_empty().extend(root).extend(path.split('/'));
        }
        Ok(url)
    }

    fn json(&self, what: &str, request: RequestBuilder) -> Answer<Value> {
        let bytes = self.send(what, request.timeout(TIMEOUT))?;
        serde_json::from_slice(&bytes).map_err(|_| {
            let server = self.server();
            Error::config(format!(
                "'{server}' does not answer like an MLflow server ({what}): check mlflow.tracking_uri, and that no \
                 sign-in page stands before it"
            ))
            .into()
        })
    }

    /// Sends a request; the body of the answer if it is one of success.
    fn send(&self, what: &str, request: RequestBuilder) -> Answer<Vec<u8>> {
        let exchange = async {
            let mut response = request.send().await?;
            let mut body = Vec::new();
            while let Some(part) = response.chunk().await? {
                if body.len() + part.len() > MAX_ANSWER {
                    break;
                }
                body.extend_from_slice(&part);
            }
            let location = response.headers().get("location").and_then(|l| l.to_str().ok()).map(str::to_owned);
            Ok::<_, reqwest::Error>((response.status(), location, body))
        };
        let (status, location, body) = self.runtime.block_on(exchange).map_err(|e| self.unreachable(what, e))?;
        tracing::debug!(what, status = status.as_u16(), "MLflow server answered");
        if status.is_success() {
            return Ok(body);
        }
        Err(self.refusal(what, status, location.as_deref(), &body))
    }

    fn unreachable(&self, what: &str, source: reqwest::Error) -> Fault {
        let server = self.server();
        let builder = source.is_builder();
        let text = if source.is_timeout() {
            format!("the MLflow server '{server}' does not answer in time ({what})")
        } else {
            format!("cannot reach the MLflow server '{server}' ({what}): is it up, and is mlflow.tracking_uri right?")
        };
        let error = Error::storage(text).with_source(source.without_url());
        Fault { transient: !builder, code: String::new(), error }
    }

    /// What an answer that is not one of success means.
    fn refusal(&self, what: &str, status: StatusCode, location: Option<&str>, body: &[u8]) -> Fault {
        let document: Value = serde_json::from_slice(body).unwrap_or_default();
        let code = document["error_code"].as_str().unwrap_or_default().to_owned();
        let text =
            document["message"].as_str().map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned);
        let said = shown(&text);
        let number = status.as_u16();
        let off = number == 503 && text.contains("serve-artifacts");
        let transient = !off && (number == 429 || matches!(number, 500 | 502..=504));
        let advice = if status.is_redirection() {
            let to = location.map(|l| shown_location(&self.base, l)).unwrap_or_default();
            format!("it redirects to '{to}', write that address as mlflow.tracking_uri")
        } else {
            advice(what, number, &text, self.base.host_str().unwrap_or_default())
        };
        let server = self.server();
        let message = format!("the MLflow server '{server}' refuses ({what}, status {number}): {said}");
        let message = if advice.is_empty() { message } else { format!("{message}: {advice}") };
        let error = if transient { Error::storage(message) } else { Error::config(message) };
        Fault { transient, code, error }
    }
}

/// A server's text as a message may show it: one line, not too long, without a secret.
fn shown(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = secrets::redact(&line);
    if line.is_empty() {
        return "it says nothing".to_owned();
    }
    match line.char_indices().nth(MAX_SHOWN) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line.into_owned(),
    }
}

/// What to do about a refusal; empty where the server's own words must do.
fn advice(what: &str, status: u16, text: &str, host: &str) -> String {
    let lower = text.to_ascii_lowercase();
    match status {
        401 => "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD".to_owned(),
        403 if lower.contains("invalid host header") => format!(
            "the server does not answer to the name '{host}': start it with --allowed-hosts and that name, with the port \
             where one is given, or use an address that it accepts, such as 127.0.0.1"
        ),
        403 => "these credentials (MLFLOW_TRACKING_TOKEN or MLFLOW_TRACKING_USERNAME) may not do that".to_owned(),
        404 if !lower.contains("does not exist") && !lower.contains("not found") => {
            "check mlflow.tracking_uri: this is no MLflow server".to_owned()
        }
        400 if what == "model-versions/create" && lower.contains("source") => {
            "this server does not take that place as a source of model versions: write mlflow.source: upload, or keep the \
             store where the server looks (s3://, gs://, or Azure storage); a server that is to take other schemes needs \
             MLFLOW_ALLOWED_HOST_ADDRESSED_ARTIFACT_SCHEMES"
                .to_owned()
        }
        503 if text.contains("serve-artifacts") => {
            "start it with --serve-artifacts, or keep the store in the cloud (s3://, gs://, Azure storage) and write \
             mlflow.source: uri"
                .to_owned()
        }
        413 => "a file is larger than the server or the proxy before it takes: raise that limit, or keep the store in the \
                cloud and write mlflow.source: uri"
            .to_owned(),
        _ => String::new(),
    }
}

/// Where a redirection leads, without what may be secret in it.
fn shown_location(base: &Url, location: &str) -> String {
    let Ok(mut url) = base.join(location) else { return "an address that is none".to_owned() };
    url.set_query(None);
    url.set_fragment(None);
    // these fail for URLs without a host only, which hold no user either
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

fn basic(user: &str, password: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
}

/// The header that every request carries, marked so that no library logs it.
fn authorization(credentials: &Credentials) -> Result<HeaderMap> {
    let text = match credentials {
        Credentials::None => return Ok(HeaderMap::new()),
        Credentials::Token(token) => format!("Bearer {token}"),
        Credentials::Basic(user, password) => format!("Basic {}", basic(user, password)),
    };
    let mut value = HeaderValue::from_str(&text).map_err(|_| {
        Error::config("the MLflow credentials of the environment hold characters that no header can hold")
    })?;
    value.set_sensitive(true);
    Ok([(AUTHORIZATION, value)].into_iter().collect())
}

async fn open(path: &Path) -> Result<(tokio::fs::File, u64)> {
    let file = tokio::fs::File::open(path).await.map_err(|e| Error::io("open", path, e))?;
    let metadata = file.metadata().await.map_err(|e| Error::io("read", path, e))?;
    Ok((file, metadata.len()))
}

/// The file as a request's body, read in parts while it is sent.
fn stream(file: tokio::fs::File) -> Body {
    Body::wrap_stream(futures::stream::try_unfold(file, |mut file| async move {
        let mut part = BytesMut::with_capacity(PART);
        let read = file.read_buf(&mut part).await?;
        Ok::<_, std::io::Error>((read > 0).then(|| (part.freeze(), file)))
    }))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
