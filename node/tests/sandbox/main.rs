//! Programs that try to get out of the sandbox, or to take more than they may, on the real kernel. Where that does no harm, the
//! same attempt is made without the sandbox first, to show that it is the sandbox that stops it.

mod escape;
mod leftovers;
mod limits;
mod network;
mod network_hostile;
mod rig;
mod unprivileged;
mod volumes;
