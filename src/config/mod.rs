//! Job files and training configurations: rendered, parsed, validated.
