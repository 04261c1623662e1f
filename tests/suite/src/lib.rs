//! Tests of the whole device: real daemons, real callers, a simulated cloud. There is
//! nothing here to use.
#![forbid(unsafe_code)]
