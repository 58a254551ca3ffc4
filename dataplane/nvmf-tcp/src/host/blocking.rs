//! Blocking calls over a reactor on a thread of its own: for tools and tests.
