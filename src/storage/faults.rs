//! A store that fails as real ones do, for tests: answers get lost, races are reported that never were.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::Store;

/// Memory whose conditional puts go wrong in a fixed pattern: of ten, two lose their answer after the fact (one is then
/// reported as "already exists", one as a server error), and one is refused as "already exists" without being done.
#[derive(Debug)]
struct FaultStore {
    memory: InMemory,
    count: AtomicU64,
}

/// A store in memory with such faults.
pub(crate) fn faulty_store() -> Store {
    let backend = FaultStore { memory: InMemory::new(), count: AtomicU64::new(0) };
    Store::over("memory://faulty", Arc::new(backend))
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
        self.memory.get_opts(location, options)
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
