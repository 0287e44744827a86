//! Named, numbered versions of datasets and models; run records.
