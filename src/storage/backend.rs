//! From a place and settings to a client of the `object_store` crate.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use crate::error::{Context, Error, Result};

use super::fault_kind::storage_error;
use super::settings::{Cloud, StoreSettings, has_credentials};
use super::uri::{self, Location};
use super::{check_key, tls};

/// A client, and what must be known of it.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    pub(super) client: Arc<dyn ObjectStore>,
    /// Where the client's paths start, without a trailing slash.
    pub(super) root_uri: String,
    /// The path of the place below that; empty for none.
    pub(super) path: String,
    /// The folder, for those of this machine.
    pub(super) folder: Option<PathBuf>,
    /// Whether what is uploaded should be read back, since nothing guards it on its way.
    pub(super) read_back: bool,
    /// How long a lock's holder may be silent; `None` where locks end with their process.
    pub(super) lease: Option<Duration>,
}

/// A client for a place.
///
/// # Errors
/// [`crate::ErrorKind::Config`] for options that the store does not have, and for missing credentials.
pub(super) fn connect(location: Location, settings: &StoreSettings) -> Result<Backend> {
    let shown = location.canonical();
    connect_to(location, settings).context(|| format!("'{shown}'"))
}

fn connect_to(location: Location, settings: &StoreSettings) -> Result<Backend> {
    let lease = settings.lease()?;
    let cloud = |client: Arc<dyn ObjectStore>, root_uri: String, path: String, read_back: bool| Backend {
        client,
        root_uri,
        path,
        folder: None,
        read_back,
        lease: Some(lease),
    };
    let root_of = |location: &Location| root(location).canonical();
    match location {
        Location::Folder(folder) => {
            settings.check(None)?;
            std::fs::create_dir_all(&folder).map_err(|e| Error::io("create the store's folder", &folder, e))?;
            let root = folder.canonicalize().map_err(|e| Error::io("open the store's folder", &folder, e))?;
            let client = LocalFileSystem::new_with_prefix(&root)
                .map_err(|e| storage_error("open", &root.display().to_string(), e))?
                .with_fsync(true)
                .with_automatic_cleanup(true);
            let root_uri = uri::of_path(&root);
            let local = cloud(Arc::new(client), root_uri, String::new(), false);
            Ok(Backend { folder: Some(root), lease: None, ..local })
        }
        Location::Memory => {
            settings.check(None)?;
            let memory = cloud(Arc::new(InMemory::new()), location.canonical(), String::new(), false);
            Ok(Backend { lease: None, ..memory })
        }
        Location::S3 { ref bucket, ref path } => {
            let read_back = prepare(settings, Cloud::S3)?;
            let pairs = settings.pairs::<AmazonS3ConfigKey>(Cloud::S3);
            let mut builder = AmazonS3Builder::new().with_retry(retry(settings)?).with_client_options(client());
            // real S3 checks what it receives against it
            builder = builder.with_checksum_algorithm(Checksum::SHA256);
            for (key, value) in pairs {
                builder = builder.with_config(key, value);
            }
            let built = builder.with_bucket_name(bucket).build().map_err(unusable)?;
            let plain =
                endpoint_is_plain(settings, Cloud::S3, &[AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint]);
            Ok(cloud(Arc::new(built), root_of(&location), path.clone(), read_back && plain))
        }
        Location::Azure { ref account, ref container, ref path } => {
            let read_back = prepare(settings, Cloud::Azure)?;
            let mut builder = MicrosoftAzureBuilder::new().with_retry(retry(settings)?).with_client_options(client());
            for (key, value) in settings.pairs::<AzureConfigKey>(Cloud::Azure) {
                builder = builder.with_config(key, value);
            }
            if let Some(account) = account {
                builder = builder.with_account(account);
            }
            let built = builder.with_container_name(container).build().map_err(unusable)?;
            let plain = endpoint_is_plain(settings, Cloud::Azure, &[AzureConfigKey::Endpoint])
                || settings.any_of(Cloud::Azure, &[AzureConfigKey::UseEmulator]);
            Ok(cloud(Arc::new(built), root_of(&location), path.clone(), read_back && plain))
        }
        Location::Gcs { ref bucket, ref path } => {
            let read_back = prepare(settings, Cloud::Gcs)?;
            let mut builder =
                GoogleCloudStorageBuilder::new().with_retry(retry(settings)?).with_client_options(client());
            for (key, value) in settings.pairs::<GoogleConfigKey>(Cloud::Gcs) {
                builder = builder.with_config(key, value);
            }
            let built = builder.with_bucket_name(bucket).build().map_err(unusable)?;
            let plain = endpoint_is_plain(settings, Cloud::Gcs, &[GoogleConfigKey::BaseUrl]);
            Ok(cloud(Arc::new(built), root_of(&location), path.clone(), read_back && plain))
        }
        Location::Http(url) => {
            tls::provide();
            let options = client().with_allow_http(true);
            // the whole URL is the client's root: a query stays as it is
            let built = HttpBuilder::new().with_url(&url).with_retry(retry(settings)?).with_client_options(options);
            let shown = Location::Http(url).canonical();
            Ok(cloud(Arc::new(built.build().map_err(unusable)?), shown, String::new(), false))
        }
    }
}

/// Checks what can be checked of a cloud's settings; whether uploads may have to be read back.
fn prepare(settings: &StoreSettings, cloud: Cloud) -> Result<bool> {
    tls::provide();
    settings.check(Some(cloud))?;
    if !has_credentials(settings, cloud) && !settings.instance_credentials()? {
        return Err(Error::config(no_credentials(cloud)));
    }
    settings.verify_uploads()
}

/// Without credentials the client would ask the machine's metadata service, at the first request and for a long time.
fn no_credentials(cloud: Cloud) -> String {
    let variables = match cloud {
        Cloud::S3 => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN",
        Cloud::Azure => {
            "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or AZURE_FEDERATED_TOKEN_FILE, AZURE_CLIENT_ID and AZURE_TENANT_ID"
        }
        Cloud::Gcs => "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT_KEY",
    };
    format!(
        "no credentials are set: set {variables}; or MEDTUNE_STORE_CREDENTIALS=instance to use the identity of this machine"
    )
}

/// Bucket or container alone.
fn root(location: &Location) -> Location {
    let path = String::new();
    match location.clone() {
        Location::S3 { bucket, .. } => Location::S3 { bucket, path },
        Location::Gcs { bucket, .. } => Location::Gcs { bucket, path },
        Location::Azure { account, container, .. } => Location::Azure { account, container, path },
        other => other,
    }
}

fn endpoint_is_plain<K: FromStr + PartialEq>(settings: &StoreSettings, cloud: Cloud, keys: &[K]) -> bool {
    let pairs = settings.pairs::<K>(cloud);
    pairs.iter().any(|(key, value)| keys.contains(key) && value.starts_with("http://"))
}

/// A slow transfer is no failure as long as something arrives; a silent one is.
fn client() -> ClientOptions {
    ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(Duration::from_secs(5))
        .with_read_timeout(Duration::from_secs(30))
}

/// Servers are away for seconds to minutes when they restart; the crate's own default gives up after about three seconds.
fn retry(settings: &StoreSettings) -> Result<RetryConfig> {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(200), max_backoff: Duration::from_secs(15), base: 2.0 };
    Ok(RetryConfig { backoff, max_retries: 20, retry_timeout: settings.retry_timeout()? })
}

/// A builder's refusal: a value that cannot be used.
fn unusable(source: object_store::Error) -> Error {
    let text = super::fault_kind::chain(&source);
    let hint = if text.contains("URL scheme is not allowed") || text.contains("builder error") {
        "; an http:// endpoint needs allow_http: true (AWS_ALLOW_HTTP, AZURE_ALLOW_HTTP)"
    } else {
        ""
    };
    Error::config(format!("the settings cannot be used{hint}: {text}"))
}

/// The path of a store in its bucket must be made of plain keys: everything below it is.
pub(super) fn check_store_path(backend: &Backend) -> Result<()> {
    if backend.path.is_empty() { Ok(()) } else { check_key(&backend.path) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn settings(pairs: &[(&str, &str)]) -> StoreSettings {
        StoreSettings::from_environment(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    fn connect(uri: &str, settings: &StoreSettings) -> Result<Backend> {
        super::connect(Location::parse(uri)?, settings)
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "abcdefgh"), ("AWS_SECRET_ACCESS_KEY", "planted-secret-0")];

    #[test]
    fn places_become_clients() {
        let s3 = connect("s3://bucket/a/b", &settings(&KEYS)).unwrap();
        assert_eq!((s3.root_uri.as_str(), s3.path.as_str(), s3.read_back), ("s3://bucket", "a/b", false));
        let mut plain = KEYS.to_vec();
        plain.extend([("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), ("AWS_ALLOW_HTTP", "true")]);
        assert!(connect("s3://bucket/a/b", &settings(&plain)).unwrap().read_back);
        let azure = [("AZURE_STORAGE_ACCOUNT_KEY", "a2V5a2V5a2V5"), ("AZURE_STORAGE_ACCOUNT_NAME", "account")];
        assert_eq!(connect("az://c/x", &settings(&azure)).unwrap().root_uri, "az://c");
        let full = connect("abfss://c@other.dfs.core.windows.net/x", &settings(&azure)).unwrap();
        assert_eq!(full.root_uri, "abfss://c@other.dfs.core.windows.net");
        let gcs = [("GOOGLE_SKIP_SIGNATURE", "true")];
        assert_eq!(connect("gs://b/x/y", &settings(&gcs)).unwrap().path, "x/y");
        assert_eq!(connect("https://host/a.tsv?sig=1", &settings(&[])).unwrap().root_uri, "https://host/a.tsv");
    }

    #[test]
    fn what_cannot_work_is_refused_at_once() {
        for (uri, telling) in [
            ("s3://b/x", "AWS_ACCESS_KEY_ID"),
            ("az://c/x", "AZURE_STORAGE_ACCOUNT_KEY"),
            ("gs://b/x", "GOOGLE_APPLICATION_CREDENTIALS"),
        ] {
            let error = connect(uri, &settings(&[])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(telling) && error.to_string().contains(uri), "{error}");
        }
        let mut bad = KEYS.to_vec();
        bad.push(("AWS_TIMEOUT", "30"));
        let text = connect("s3://b/x", &settings(&bad)).unwrap_err().to_string();
        assert!(text.contains("timeout") || text.contains("30"), "{text}");
        bad[2] = ("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
        let text = connect("s3://b/x", &settings(&bad)).map(|_| String::new()).unwrap_or_else(|e| e.to_string());
        assert!(text.is_empty() || text.contains("allow_http"), "{text}");
    }
}
