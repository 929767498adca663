//! Sources of packets: AF_PACKET and pcap files.
