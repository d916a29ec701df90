//! Every decision of the mesh, sans-IO.
