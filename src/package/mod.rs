//! MLflow model folders: files and metadata, no tensors.
