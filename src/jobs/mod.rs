//! One file a job kind; pipelines compose them.
