//! What every writable block device must do, as a function that a device's tests call.
