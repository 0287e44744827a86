//! How a package gets to where a server lets model versions point.

use std::path::Path;

use super::client::{Client, Fault};
use crate::config::mlflow::Source;
use crate::error::{Context, Error, Result};
use crate::registry::{Version, open_local};
use crate::storage::{Store, local_folder};

/// Whether the package is copied among the run's artifacts, as opposed to named where it lies.
pub(super) fn wants_upload(source: Source, store: &Store) -> bool {
    match source {
        Source::Uri => false,
        Source::Upload => true,
        // a server refuses folders as a source, and could not read those of this machine
        Source::Auto => matches!(scheme(store.uri()), "file" | "memory" | ""),
    }
}

/// The URI of a version as servers take it: Azure storage in the `wasbs://` form, the only one that every server does; the
/// others as the store writes them.
///
/// # Errors
/// [`crate::ErrorKind::Config`] for Azure storage whose account is not known.
pub(super) fn source_uri(uri: &str, azure_account: Option<&str>) -> Result<String> {
    let (scheme, rest) = uri.split_once("://").unwrap_or(("", uri));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if !matches!(scheme, "az" | "abfss") {
        return Ok(uri.to_owned());
    }
    let (container, account) = match authority.split_once('@') {
        Some((container, host)) => (container, host.split('.').next()),
        None => (authority, azure_account),
    };
    let account = account.filter(|a| !a.is_empty()).ok_or_else(|| {
        Error::config(format!("'{uri}' does not name its storage account: set AZURE_STORAGE_ACCOUNT_NAME"))
    })?;
    Ok(format!("wasbs://{container}@{account}.blob.core.windows.net{path}"))
}

fn scheme(uri: &str) -> &str {
    uri.split_once(':').map_or("", |(scheme, _)| scheme)
}

/// Copies the package below the run's artifact root, and says where it is then. A second time it is replaced by the same.
pub(super) fn upload(client: &Client, store: &Store, version: &Version, root: &str) -> Result<String> {
    let root = root.trim_end_matches('/');
    let target = format!("{root}/{}", version.prefix);
    let folder = open_local(store, version)?;
    tracing::info!(version = %version.reference(), bytes = version.total_size(), to = %target, "uploading");
    match scheme(root) {
        "mlflow-artifacts" => proxied(client, version, &folder, &target)?,
        "file" | "" => {
            check_folder(root)?;
            direct((store, version), &folder, root)?;
        }
        _ => direct((store, version), &folder, root).context(|| {
            format!(
                "the MLflow server keeps artifacts at '{root}', where they are to be written directly; start it with \
                 --serve-artifacts and --artifacts-destination, or write mlflow.source: uri"
            )
        })?,
    }
    Ok(target)
}

/// Through the server, which writes them where it keeps artifacts.
fn proxied(client: &Client, version: &Version, folder: &Path, target: &str) -> Result<()> {
    let rest = target.trim_start_matches("mlflow-artifacts:");
    let path = match rest.strip_prefix("//") {
        Some(rest) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if !host.is_empty() && host != client.authority() {
                return Err(Error::config(format!(
                    "the experiment keeps its artifacts at another server, '{}': write that one as mlflow.tracking_uri, \
                     or another mlflow.experiment",
                    host.rsplit('@').next().unwrap_or_default()
                )));
            }
            path
        }
        None => rest,
    };
    for file in &version.files {
        let to = format!("{}/{}", path.trim_start_matches('/'), file.path);
        client.upload(&to, &folder.join(&file.path)).map_err(Fault::into_error).context(|| file.path.clone())?;
    }
    Ok(())
}

/// Into a folder or bucket that this program can write itself.
fn direct((store, version): (&Store, &Version), folder: &Path, root: &str) -> Result<()> {
    let target = store.beside(root)?;
    for file in &version.files {
        target.put_file(&version.key(&file.path), &folder.join(&file.path))?;
    }
    Ok(())
}

/// A folder of the server's is written to only if it is here, too: elsewhere it would be made, and the server not see it.
fn check_folder(root: &str) -> Result<()> {
    // .../EXPERIMENT/RUN/artifacts: the server makes the last three when it first writes
    let path = local_folder(root)?;
    if path.ancestors().nth(3).is_some_and(Path::is_dir) {
        return Ok(());
    }
    Err(Error::config(format!(
        "the MLflow server keeps artifacts in its own folder '{}', which is not on this machine: start it with \
         --serve-artifacts and --artifacts-destination, or keep the store in the cloud and write mlflow.source: uri",
        path.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_have_the_form_that_every_server_takes() {
        let azure = "wasbs://box@acct.blob.core.windows.net/x/models/m/1";
        for (uri, wanted) in [
            ("s3://bucket/x/models/m/1", "s3://bucket/x/models/m/1"),
            ("gs://bucket/x", "gs://bucket/x"),
            ("az://box/x/models/m/1", azure),
            ("abfss://box@acct.dfs.core.windows.net/x/models/m/1", azure),
        ] {
            assert_eq!(source_uri(uri, Some("acct")).unwrap(), wanted, "{uri}");
        }
        let error = source_uri("az://box/x", None).unwrap_err().to_string();
        assert!(error.contains("AZURE_STORAGE_ACCOUNT_NAME"), "{error}");
    }

    #[test]
    fn folders_are_uploaded_unless_told_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        assert!(wants_upload(Source::Auto, &store) && wants_upload(Source::Upload, &store));
        assert!(!wants_upload(Source::Uri, &store));
    }

    #[test]
    fn folders_of_other_machines_are_not_made_here() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("1/run/artifacts");
        check_folder(&format!("file://{}", there.display())).unwrap();
        let gone = folder.path().join("gone/1/run/artifacts");
        let error = check_folder(&format!("file://{}", gone.display())).unwrap_err().to_string();
        assert!(error.contains("--serve-artifacts"), "{error}");
    }
}
