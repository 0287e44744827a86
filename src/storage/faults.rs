//! A store that fails as real ones do, for tests: answers get lost, races are reported that never were, streams end early, hang
//! for a moment or carry a wrong byte.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::Store;

/// Memory whose conditional puts go wrong in a fixed pattern: of ten, two lose their answer after the fact (one is then
/// reported as "already exists", one as a server error), and one is refused as "already exists" without being done.
///
/// If reads fail too, of fifteen one is refused as busy, five break off half-way, one carries a wrong byte, and all are late.
#[derive(Debug)]
struct FaultStore {
    memory: InMemory,
    count: AtomicU64,
    /// The number of reads; `None` if they go well.
    reads: Option<AtomicU64>,
}

/// How late the answer to a read is.
const LATE: Duration = Duration::from_millis(2);

/// A store in memory with such faults.
pub(crate) fn faulty_store() -> Store {
    let backend = FaultStore { memory: InMemory::new(), count: AtomicU64::new(0), reads: None };
    Store::over("memory://faulty", Arc::new(backend))
}

/// One whose reads fail too.
pub(crate) fn unreadable_store() -> Store {
    let backend = FaultStore { memory: InMemory::new(), count: AtomicU64::new(0), reads: Some(AtomicU64::new(0)) };
    Store::over("memory://unreadable", Arc::new(backend))
}

fn busy() -> Error {
    Error::Generic { store: "FaultStore", source: "503".into() }
}

/// The answer with a stream that breaks off after half of its bytes.
async fn broken_off(result: GetResult) -> Result<GetResult> {
    let (meta, range, attributes, extensions) =
        (result.meta.clone(), result.range.clone(), result.attributes.clone(), result.extensions.clone());
    let bytes = result.bytes().await?;
    let parts = vec![Ok(bytes.slice(..bytes.len() / 2)), Err(busy())];
    let parts = parts.into_iter().filter(|part| !part.as_ref().is_ok_and(Bytes::is_empty)).collect::<Vec<_>>();
    let payload = GetResultPayload::Stream(futures::stream::iter(parts).boxed());
    Ok(GetResult { payload, meta, range, attributes, extensions })
}

/// The answer with one wrong byte.
async fn corrupt(result: GetResult) -> Result<GetResult> {
    let (meta, range, attributes, extensions) =
        (result.meta.clone(), result.range.clone(), result.attributes.clone(), result.extensions.clone());
    let mut bytes = result.bytes().await?.to_vec();
    if let Some(byte) = bytes.last_mut() {
        *byte ^= 1;
    }
    let payload = GetResultPayload::Stream(futures::stream::iter([Ok(Bytes::from(bytes))]).boxed());
    Ok(GetResult { payload, meta, range, attributes, extensions })
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultStore")
    }
}

fn exists(location: &Path) -> Error {
    Error::AlreadyExists { path: location.to_string(), source: "conflict".into() }
}

// the signatures are what `#[async_trait]` makes of the trait's
impl ObjectStore for FaultStore {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> BoxFuture<'c, Result<PutResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            if opts.mode != PutMode::Create {
                return self.memory.put_opts(location, payload, opts).await;
            }
            match self.count.fetch_add(1, Ordering::Relaxed) % 10 {
                2 => Err(exists(location)),
                5 => {
                    self.memory.put_opts(location, payload, opts).await?;
                    Err(exists(location))
                }
                8 => {
                    self.memory.put_opts(location, payload, opts).await?;
                    Err(Error::Generic { store: "FaultStore", source: "503".into() })
                }
                _ => self.memory.put_opts(location, payload, opts).await,
            }
        })
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        opts: PutMultipartOptions,
    ) -> BoxFuture<'c, Result<Box<dyn MultipartUpload>>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.memory.put_multipart_opts(location, opts)
    }

    fn get_opts<'a, 'b, 'c>(&'a self, location: &'b Path, options: GetOptions) -> BoxFuture<'c, Result<GetResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            let Some(reads) = &self.reads else { return self.memory.get_opts(location, options).await };
            let number = reads.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(LATE).await;
            let head = options.head;
            let result = self.memory.get_opts(location, options).await?;
            match number % 15 {
                _ if head => Ok(result),
                0 => Err(busy()),
                4 => corrupt(result).await,
                n if n % 3 == 1 => broken_off(result).await,
                _ => Ok(result),
            }
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.memory.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.memory.list(prefix)
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, prefix: Option<&'b Path>) -> BoxFuture<'c, Result<ListResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.memory.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'd, 'c>(
        &'a self,
        from: &'b Path,
        to: &'d Path,
        options: CopyOptions,
    ) -> BoxFuture<'c, Result<()>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
        Self: 'c,
    {
        self.memory.copy_opts(from, to, options)
    }
}
