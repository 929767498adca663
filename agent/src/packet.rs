//! Decoding of link, network and transport headers.
