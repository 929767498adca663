//! The tag block: what stands on every row for each end it describes.
//!
//! The labeler fills it from the basis (VPC, address, process); everything here is an integer or an address.

use crate::{
    block::block,
    enums::{Kind, TagSource, VALUES_OF_KIND},
    types::{Ip, U8, U32},
};

/// VPC id that means "outside of all known networks": DeepFlow's -2, which earlier releases stored. The last node would have to give out
/// four million VPCs to come to it.
pub const INTERNET_EPC: u32 = 2_u32.wrapping_neg();

block! {
    /// Tags of one end.
    Tags, row TagRow {
        columns {
            /// IP address
            ip: Ip Address;
            /// region
            region_id: U32 Dictionary(Kind::Region);
            /// availability zone
            az_id: U32 Dictionary(Kind::Az);
            /// machine that runs the agent
            host_id: U32 Dictionary(Kind::Host);
            /// cloud or virtual machine
            chost_id: U32 Dictionary(Kind::Chost);
            /// VPC of the address; 4294967294 is the internet
            l3_epc_id: U32 Plain;
            /// virtual private cloud
            vpc_id: U32 Dictionary(Kind::Vpc);
            /// subnet
            subnet_id: U32 Dictionary(Kind::Subnet);
            /// kind of the device that owns the address
            l3_device_type: U8 Enum(VALUES_OF_KIND);
            /// device that owns the address
            l3_device_id: U32 Plain;
            /// Kubernetes cluster
            pod_cluster_id: U32 Dictionary(Kind::PodCluster);
            /// Kubernetes node
            pod_node_id: U32 Dictionary(Kind::PodNode);
            /// Kubernetes namespace
            pod_ns_id: U32 Dictionary(Kind::PodNs);
            /// Kubernetes workload
            pod_group_id: U32 Dictionary(Kind::PodGroup);
            /// Kubernetes pod
            pod_id: U32 Dictionary(Kind::Pod);
            /// Kubernetes service
            pod_service_id: U32 Dictionary(Kind::PodService);
            /// Kubernetes ingress
            pod_ingress_id: U32 Dictionary(Kind::PodIngress);
            /// load balancer
            lb_id: U32 Dictionary(Kind::Lb);
            /// NAT gateway
            natgw_id: U32 Dictionary(Kind::NatGateway);
            /// VPC of the network interface
            l2_vpc_id: U32 Dictionary(Kind::Vpc);
            /// custom service
            service_id: U32 Dictionary(Kind::Service);
            /// process, by its command or script
            process_id: U32 Dictionary(Kind::Process);
            /// process number on its host
            pid: U32 Plain;
            /// container
            container_id: U32 Dictionary(Kind::Container);
            /// systemd unit
            unit_id: U32 Dictionary(Kind::Unit);
            /// kind of the instance
            auto_instance_type: U8 Enum(VALUES_OF_KIND);
            /// the most exact resource: pod, else process, node, device, internet, address
            auto_instance_id: U32 TypedDictionary;
            /// kind of the service
            auto_service_type: U8 Enum(VALUES_OF_KIND);
            /// the service: custom service, else pod service, workload, unit, process, cluster, device, internet, address
            auto_service_id: U32 TypedDictionary;
            /// how the tags were found
            tag_source: U8 Enum(TagSource::VALUES);
        }
        groups {}
    }
}
