//! One store: put, get, list, and the create-if-absent that publishing rests on.
