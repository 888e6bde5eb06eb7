/* SPDX-License-Identifier: GPL-2.0-only */
/* What the kernel counts, as user space reads it: the layout of one slot of the pinned, frozen array `slots`.
 *
 * nodeagent/bpf/layout.py mirrors this file, and tests/unit/test_bpf_layout.py holds the two together.  A change of
 * any size, offset or number here is a new LAYOUT: the loader then starts a new generation of maps.
 */
#ifndef NODEAGENT_FLOW_H
#define NODEAGENT_FLOW_H

#define LAYOUT 1

#define SLOTS 16384          /* entries of the array; the first RESERVED belong to pods, the others are taken as needed */
#define PODS 1024            /* pods a node can count; a pod's number is 1 .. PODS - 1 */
#define CLASSES 4            /* reserved slots a pod: one for each class, from number * CLASSES on */
#define RESERVED (PODS * CLASSES)
#define NETNS_POD (1ULL << 63) /* a pod known by its netns cookie, not by a cgroup id */

enum flow_class {            /* where a packet went, compared with where its socket wanted it to go */
	CLASS_INTERCEPTED = 0,   /* to the sidecar's port, by redirect or by TPROXY */
	CLASS_BYPASSED = 1,      /* to its own destination */
	CLASS_PROXY = 2,         /* sent by the sidecar itself; a NETNS_POD's is told by uid and gid */
	CLASS_TRANSLATED = 3,    /* to a third place: somebody else's DNAT */
};

enum flow_kind {
	KIND_FLOW = 0,
	KIND_OVERFLOW = 1,       /* a reserved slot: what found no slot of its own; only pod and class mean something */
	KIND_FOLDED = 2,         /* many former slots in one: pod, container, protocol and class; `port` is a reason's number */
};

enum flow_owner {            /* bits */
	OWNER_UID = 1,           /* the socket's uid is one of the proxy's */
	OWNER_GID = 2,           /* its gid is */
	OWNER_GID_UNKNOWN = 4,   /* socket older than counting: nobody can tell its gid */
};

enum flow_flags {            /* bits */
	FLAG_UNSEEN = 1,         /* began before anybody counted: its first packet was never seen, its epoch is unknown */
	FLAG_ESCAPED = 2,        /* was intercepted, and then left for its own destination mid-stream */
};

enum slot_state {
	SLOT_FREE = 0,
	SLOT_LIVE = 1,
	SLOT_EVICTED = 2,        /* nobody finds it by its key any more; its counters are still to be folded */
};

struct flow_key {
	__u64 pod;               /* id of the pod's cgroup v2 directory, or NETNS_POD | netns cookie */
	__u64 container;         /* id of the container's cgroup, the pod's child; 0 where pods have none */
	__u32 address[4];        /* dialled, network order; IPv4 (v4-mapped too) in address[0] */
	__u32 ifindex;           /* device that the packet left through */
	__u32 epoch;             /* of the connection's first packet: even = settled, odd = between its neighbours */
	__u16 port;              /* dialled, network order; 0 where the protocol has none */
	__u8 protocol;           /* IPPROTO_* */
	__u8 family;             /* 4 or 6 */
	__u8 class;              /* enum flow_class */
	__u8 owner;              /* enum flow_owner */
	__u8 flags;              /* enum flow_flags */
	__u8 kind;               /* enum flow_kind */
};

struct flow_counters {       /* monotone as long as the slot's generation stays */
	__u64 connections;       /* SYNs that are no retransmits; distinct (socket, destination) otherwise */
	__u64 packets;           /* as they left the IP layer: a GSO packet is one */
	__u64 segments;          /* as they leave the device */
	__u64 bytes;             /* IP bytes, the headers of every segment included */
	__u64 payload;           /* bytes behind the transport header: what the application sent, retransmits included */
	__u64 received_packets;
	__u64 received_bytes;    /* IP bytes */
};

struct flow_slot {
	__u32 generation;        /* grows when the slot changes hands */
	__u32 state;             /* enum slot_state */
	struct flow_key key;
	struct flow_counters counters;
};

#endif
