//! What stores are opened with: the environment's variables and the job's `store:` section.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;

use crate::config::{Environment, did_you_mean};
use crate::error::{Error, Result};
use crate::telemetry::secrets;

/// Options that are this program's own.
const OWN: [&str; 4] = ["credentials", "lease_seconds", "retry_seconds", "verify_uploads"];
/// Options of every store over HTTP.
const CLIENT: [&str; 9] = [
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "pool_idle_timeout",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "read_timeout",
    "timeout",
];
const S3: [&str; 14] = [
    "checksum_algorithm",
    "disable_tagging",
    "endpoint",
    "metadata_endpoint",
    "region",
    "request_payer",
    "role_arn",
    "role_session_name",
    "server_side_encryption",
    "skip_signature",
    "sse_bucket_key_enabled",
    "sse_kms_key_id",
    "unsigned_payload",
    "virtual_hosted_style_request",
];
const AZURE: [&str; 11] = [
    "account_name",
    "authority_host",
    "client_id",
    "endpoint",
    "federated_token_file",
    "msi_endpoint",
    "skip_signature",
    "tenant_id",
    "use_azure_cli",
    "use_emulator",
    "disable_tagging",
];
const GCS: [&str; 4] = ["application_credentials", "base_url", "service_account", "skip_signature"];

/// Shorter values, such as the `test` of a server for trials, occur in other words by chance: they are not hidden.
const SHORTEST: usize = 8;

/// How stores are reached: variables such as `AWS_REGION` and `AZURE_STORAGE_ACCOUNT_KEY`, and options of the job file, which
/// come first. Secrets come from the environment only.
#[derive(Clone, Default)]
pub struct StoreSettings {
    environment: Environment,
    options: BTreeMap<String, String>,
}

// the environment holds credentials
impl std::fmt::Debug for StoreSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreSettings").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The kinds of stores that have options of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cloud {
    S3,
    Azure,
    Gcs,
}

impl Cloud {
    fn prefix(self) -> &'static str {
        match self {
            Cloud::S3 => "AWS_",
            Cloud::Azure => "AZURE_",
            Cloud::Gcs => "GOOGLE_",
        }
    }

    fn own_options(self) -> &'static [&'static str] {
        match self {
            Cloud::S3 => &S3,
            Cloud::Azure => &AZURE,
            Cloud::Gcs => &GCS,
        }
    }
}

impl StoreSettings {
    /// Takes what concerns stores out of the environment, and remembers its secrets so that they are never shown.
    #[must_use]
    pub fn from_environment(environment: &Environment) -> StoreSettings {
        let prefixes = ["AWS_", "AZURE_", "AZURITE_", "GOOGLE_", "MEDTUNE_", "XDG_CACHE_HOME", "HOME"];
        let kept: Environment = environment
            .iter()
            .filter(|(name, _)| prefixes.iter().any(|p| name.starts_with(p)))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        // the id of an access key is no secret: it is part of every signature
        let hidden = |name: &str| is_secret(name) && !name.ends_with("ACCESS_KEY_ID");
        for (_, value) in kept.iter().filter(|(name, value)| hidden(name) && value.len() >= SHORTEST) {
            secrets::remember(value);
            // of a shared access signature, the signature is the secret
            for part in value.trim_start_matches('?').split('&').filter_map(|p| p.strip_prefix("sig=")) {
                secrets::remember(part);
            }
        }
        StoreSettings { environment: kept, options: BTreeMap::new() }
    }

    /// With the options of a job file's `store:` section.
    #[must_use]
    pub fn with_options(mut self, options: BTreeMap<String, String>) -> StoreSettings {
        self.options = options;
        self
    }

    /// The same without options: for places other than the job's store.
    #[must_use]
    pub fn without_options(&self) -> StoreSettings {
        StoreSettings { environment: self.environment.clone(), options: BTreeMap::new() }
    }

    /// A variable of the environment.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// Refuses options that this kind of store does not have.
    pub(super) fn check(&self, cloud: Option<Cloud>) -> Result<()> {
        for name in self.options.keys() {
            let mut known: Vec<&str> = cloud.map(Cloud::own_options).unwrap_or_default().to_vec();
            known.extend(OWN);
            if cloud.is_some() {
                known.extend(CLIENT);
            }
            if known.contains(&name.as_str()) {
                continue;
            }
            if is_secret(name) {
                return Err(Error::config(format!(
                    "store.{name}: a job file is no place for secrets, set it in the environment"
                )));
            }
            return Err(Error::config(format!(
                "store.{name}: this kind of store has no such option: {}",
                did_you_mean(name, known)
            )));
        }
        Ok(())
    }

    /// Everything for a builder: the variables that it knows, then the options.
    pub(super) fn pairs<K: FromStr>(&self, cloud: Cloud) -> Vec<(K, String)> {
        // where the store is comes from its URI alone; tests of other tools may have left these
        let place = ["bucket", "bucket_name", "container_name"];
        let of_environment = self.environment.iter().filter_map(|(name, value)| {
            let short = name.strip_prefix(cloud.prefix())?.to_ascii_lowercase();
            if place.contains(&short.as_str()) || value.is_empty() {
                return None;
            }
            Some((K::from_str(&name.to_ascii_lowercase()).ok()?, value.clone()))
        });
        let own = |name: &str| OWN.contains(&name);
        let of_options = self.options.iter().filter(|(name, _)| !own(name));
        let of_options = of_options.filter_map(|(name, value)| Some((K::from_str(name).ok()?, value.clone())));
        of_environment.chain(of_options).collect()
    }

    /// The storage account of `az://` stores, whose URIs do not name it.
    pub(super) fn azure_account(&self) -> Option<String> {
        let pairs = self.pairs::<AzureConfigKey>(Cloud::Azure);
        pairs.into_iter().rev().find(|(key, _)| *key == AzureConfigKey::AccountName).map(|(_, value)| value)
    }

    /// Whether any of these keys is set.
    pub(super) fn any_of<K: FromStr + PartialEq>(&self, cloud: Cloud, keys: &[K]) -> bool {
        self.pairs::<K>(cloud).iter().any(|(key, _)| keys.contains(key))
    }

    fn own(&self, name: &str) -> Option<(String, &str)> {
        let variable = format!("MEDTUNE_STORE_{}", name.to_ascii_uppercase());
        if let Some(value) = self.options.get(name) {
            return Some((format!("store.{name}"), value));
        }
        self.variable(&variable).map(|value| (variable.clone(), value))
    }

    /// Whether the machine's own identity may be asked for credentials.
    pub(super) fn instance_credentials(&self) -> Result<bool> {
        match self.own("credentials") {
            None | Some((_, "environment")) => Ok(false),
            Some((_, "instance")) => Ok(true),
            Some((place, _)) => Err(Error::config(format!("{place}: write 'environment' or 'instance'"))),
        }
    }

    /// Whether what was uploaded without TLS is read back.
    pub(super) fn verify_uploads(&self) -> Result<bool> {
        match self.own("verify_uploads") {
            None | Some((_, "true")) => Ok(true),
            Some((_, "false")) => Ok(false),
            Some((place, _)) => Err(Error::config(format!("{place}: write true or false"))),
        }
    }

    /// How long one request is tried again.
    pub(super) fn retry_timeout(&self) -> Result<Duration> {
        self.seconds("retry_seconds", 180, 1..=86_400)
    }

    /// After how long without a sign of life a lock's holder counts as gone.
    pub(super) fn lease(&self) -> Result<Duration> {
        self.seconds("lease_seconds", 60, 2..=3600)
    }

    fn seconds(&self, name: &str, default: u64, range: std::ops::RangeInclusive<u64>) -> Result<Duration> {
        let Some((place, text)) = self.own(name) else { return Ok(Duration::from_secs(default)) };
        let value = text.parse().ok().filter(|v| range.contains(v)).ok_or_else(|| {
            Error::config(format!("{place}: '{text}' must be whole seconds from {} to {}", range.start(), range.end()))
        })?;
        Ok(Duration::from_secs(value))
    }
}

/// Whether a variable or option of this name holds a secret.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let parts = ["key", "secret", "token", "password", "sas"];
    // files with secrets, and names of keys, are none themselves
    let harmless = ["_file", "_path", "_id", "_enabled", "_url", "_uri", "_endpoint"];
    let telling = name.ends_with("access_key_id") || !harmless.iter().any(|end| name.ends_with(end));
    telling && name.split('_').any(|part| parts.contains(&part))
}

/// Keys that say who is asking, by cloud: without any of them there is nobody but the machine itself.
pub(super) fn has_credentials(settings: &StoreSettings, cloud: Cloud) -> bool {
    use AmazonS3ConfigKey as S;
    use AzureConfigKey as A;
    use GoogleConfigKey as G;
    match cloud {
        Cloud::S3 => settings.any_of(
            cloud,
            &[
                S::AccessKeyId,
                S::WebIdentityTokenFile,
                S::ContainerCredentialsRelativeUri,
                S::ContainerCredentialsFullUri,
                S::SkipSignature,
                S::MetadataEndpoint,
            ],
        ),
        Cloud::Azure => settings.any_of(
            cloud,
            &[
                A::AccessKey,
                A::SasKey,
                A::Token,
                A::ClientSecret,
                A::FederatedTokenFile,
                A::MsiEndpoint,
                A::UseAzureCli,
                A::UseEmulator,
                A::SkipSignature,
            ],
        ),
        Cloud::Gcs => settings.any_of(
            cloud,
            &[G::ServiceAccount, G::ServiceAccountKey, G::ApplicationCredentials, G::BearerToken, G::SkipSignature],
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> StoreSettings {
        let environment = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        StoreSettings::from_environment(&environment)
    }

    fn options(pairs: &[(&str, &str)]) -> StoreSettings {
        settings(&[]).with_options(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn only_prefixed_variables_count_and_options_come_last() {
        let settings = settings(&[
            ("AWS_REGION", "one"),
            ("AWS_BUCKET", "other"),
            ("ENDPOINT", "http://evil"),
            ("TIMEOUT", "30"),
            ("AWS_PROFILE", "x"),
        ]);
        let settings = settings.with_options(BTreeMap::from([("region".to_owned(), "two".to_owned())]));
        let pairs = settings.pairs::<AmazonS3ConfigKey>(Cloud::S3);
        let regions: Vec<&str> = pairs.iter().map(|(_, v)| v.as_str()).collect();
        assert_eq!(regions, ["one", "two"]);
        assert!(pairs.iter().all(|(k, _)| *k == AmazonS3ConfigKey::Region));
    }

    #[test]
    fn unknown_and_secret_options_are_refused() {
        assert!(options(&[("region", "r"), ("allow_http", "true")]).check(Some(Cloud::S3)).is_ok());
        let text = options(&[("regoin", "r")]).check(Some(Cloud::S3)).unwrap_err().to_string();
        assert!(text.contains("store.regoin") && text.contains("region"), "{text}");
        for secret in ["secret_access_key", "access_key_id", "sas_token", "account_key", "bearer_token", "password"] {
            let text = options(&[(secret, "x")]).check(Some(Cloud::S3)).unwrap_err().to_string();
            assert!(text.contains("no place for secrets"), "{text}");
        }
        assert!(options(&[("region", "r")]).check(Some(Cloud::Azure)).is_err());
        assert!(options(&[("region", "r")]).check(None).is_err());
        assert!(options(&[("lease_seconds", "9")]).check(None).is_ok());
    }

    #[test]
    fn credentials_are_told_from_their_absence() {
        assert!(!has_credentials(&settings(&[("AWS_REGION", "r")]), Cloud::S3));
        assert!(has_credentials(&settings(&[("AWS_ACCESS_KEY_ID", "k")]), Cloud::S3));
        assert!(has_credentials(&settings(&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/f")]), Cloud::S3));
        assert!(!has_credentials(&settings(&[("AZURE_STORAGE_ACCOUNT_NAME", "a")]), Cloud::Azure));
        assert!(has_credentials(&settings(&[("AZURE_FEDERATED_TOKEN_FILE", "/f")]), Cloud::Azure));
        assert!(has_credentials(&settings(&[("GOOGLE_APPLICATION_CREDENTIALS", "/f")]), Cloud::Gcs));
    }

    #[test]
    fn secrets_of_the_environment_are_hidden_and_common_words_are_not() {
        let signed = "?sv=2024&sig=planted%2Bsig%3D";
        settings(&[
            ("AWS_SECRET_ACCESS_KEY", "a-planted-secret"),
            ("AZURE_STORAGE_SAS_TOKEN", signed),
            ("AWS_ACCESS_KEY_ID", "a-key-s-name"),
            ("AWS_SESSION_TOKEN", "testing"),
        ]);
        for (text, shown) in [
            ("a-planted-secret.", "***."),
            ("sig=planted%2Bsig%3D", "sig=***"),
            ("a-key-s-name", "a-key-s-name"),
            ("testing", "testing"),
        ] {
            assert_eq!(secrets::redact(text), shown);
        }
    }

    #[test]
    fn own_settings_are_checked() {
        assert_eq!(settings(&[("MEDTUNE_STORE_LEASE_SECONDS", "5")]).lease().unwrap(), Duration::from_secs(5));
        assert_eq!(options(&[]).lease().unwrap(), Duration::from_secs(60));
        for bad in ["0", "x", "99999"] {
            assert!(
                options(&[("lease_seconds", bad)]).lease().unwrap_err().to_string().contains("store.lease_seconds")
            );
        }
        assert!(options(&[("credentials", "magic")]).instance_credentials().is_err());
        assert!(options(&[("credentials", "instance")]).instance_credentials().unwrap());
    }
}
