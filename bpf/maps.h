/* SPDX-License-Identifier: GPL-2.0-only */
/* The maps, and what is in them.
 *
 * A program names a map by its number.  The loader makes the maps (nodeagent/bpf/maps.py says how large), or takes
 * those that are pinned already, and puts their descriptors where the numbers stand.  So a program compiles without
 * any privilege, and goes onto the maps of the version before it.
 */
#ifndef NODEAGENT_MAPS_H
#define NODEAGENT_MAPS_H

#include <uapi/linux/bpf.h>
#include "flow.h"

enum map_number {
	MAP_CONFIG = 1,          /* array: one struct config */
	MAP_PODS = 2,            /* hash: pod's id -> struct pod */
	MAP_SIDECARS = 3,        /* hash: container's cgroup id -> pod's id */
	MAP_OWNERS = 4,          /* hash: struct owner -> 1 */
	MAP_SOCKETS = 5,         /* socket storage: struct socket_state */
	MAP_SLOTS = 6,           /* array: struct flow_slot; mapped by readers, frozen */
	MAP_INDEX = 7,           /* hash: struct flow_key -> position in MAP_SLOTS */
	MAP_FREE = 8,            /* queue: positions that nobody has */
	MAP_TALLIES = 9,         /* array: enum tally -> __u64 */
	MAP_CARRIED = 10,        /* array: position in the generation of maps before this one -> 1 once it was added here */
};

#define LEVELS 6

struct config {
	__u32 roster;            /* grows whenever a pod comes or goes: what sockets remember about pods is stale then */
	__u32 unused;
	__u32 levels[LEVELS];    /* depths at which a pod's cgroup may lie, below the hierarchy's root; 0 ends the list */
};

struct pod {
	__u32 number;            /* names its reserved slots */
	__u32 epoch;
	__u32 tproxy_mark;       /* 0: none */
	__u16 proxy_port;        /* network order, as all ports */
	__u16 dns_port;
};

enum owner_kind {
	OWNED_BY_UID = 1,
	OWNED_BY_GID = 2,
};

struct owner {
	__u64 pod;
	__u32 id;                /* a uid or a gid of the proxy's */
	__u32 kind;              /* enum owner_kind */
};

enum tally {
	TALLY_OVERFLOW = 0,      /* packets that found no slot, and were added to the pod's reserved one */
	TALLY_BUSY = 1,          /* the same, because the index was locked by whom we interrupted */
	TALLY_NO_STATE = 2,      /* the same, because the kernel gave no memory for the socket's state */
	TALLY_LOST = 3,          /* packets counted nowhere: they found not even a reserved slot */
	TALLY_UNREADABLE = 4,    /* packets counted nowhere: their headers could not be read */
	TALLY_UNSEEN = 5,        /* packets of a pod that left by a way that has no socket, as the wire guard saw */
	TALLY_ENTRIES = 6,       /* slots taken, ever */
	TALLY_RETURNED = 7,      /* slots given back, ever */
	TALLIES = 8,
};

enum direction {
	DIRECTION_UNKNOWN = 0,
	ACTIVE = 1,              /* it dialled: its packets are egress */
	PASSIVE = 2,             /* it was dialled: never counted */
};

#define LEGS 4               /* destinations that a datagram socket may alternate between and still be counted exactly */

struct leg {                 /* one connection of a socket: where its packets are counted */
	struct flow_key key;
	__u32 slot;
	__u32 generation;        /* of the slot when it was ours; another one there means that it no longer is */
};

struct socket_state {
	struct leg legs[LEGS];   /* TCP has one at a time, the first */
	__u64 pod;               /* whose it is; 0: nobody's that we count */
	__u64 container;
	__u64 netns;             /* its cookie; 0: older than counting */
	__u32 roster;            /* config.roster when pod and container were looked up; 0: never */
	__u32 gid;
	__u32 dialled[4];        /* destination of the last unconnected send */
	__u32 wire[4];           /* where the last TCP packet really went */
	__u32 wire_ifindex;
	__u32 sequence;          /* of the last SYN */
	__u16 dialled_port;
	__u16 wire_port;
	__u8 wire_family;        /* 4 or 6; 0: the next packet has to be looked at */
	__u8 direction;          /* enum direction */
	__u8 born;               /* we saw it made: gid and netns are known */
	__u8 spoke;              /* it sent something before its pod was counted */
	__u32 next_leg;
	__u32 unused;
};

/* BCC's helpers take a map as a pointer; llvm.bpf.pseudo makes the loading instruction that the loader patches. */
#define MAP(number) ((void *)bpf_pseudo_fd(BPF_PSEUDO_MAP_FD, number))

static __always_inline struct config *the_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(MAP(MAP_CONFIG), &zero);
}

static __always_inline struct pod *pod_of(__u64 id)
{
	return bpf_map_lookup_elem(MAP(MAP_PODS), &id);
}

static __always_inline struct flow_slot *slot_at(__u32 position)
{
	return bpf_map_lookup_elem(MAP(MAP_SLOTS), &position);
}

/* NULL where nothing was remembered yet, and where *sk* is only a stub of a socket (TIME_WAIT, a request).  So what is
 * asked once a packet needs no bpf_sk_fullsock() before it: on processors where each return of a kernel function is
 * made safe, a helper costs 20 ns whatever it does.
 */
static __always_inline struct socket_state *state_of(void *sk)
{
	return bpf_sk_storage_get(MAP(MAP_SOCKETS), sk, 0, 0);
}

static __always_inline struct socket_state *state_made_for(void *sk)
{
	return bpf_sk_storage_get(MAP(MAP_SOCKETS), sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
}

static __always_inline void tally(__u32 which)
{
	__u64 *number = bpf_map_lookup_elem(MAP(MAP_TALLIES), &which);

	if (number)
		__sync_fetch_and_add(number, 1);
}

/* Read a field of a socket here and now: the verifier refuses the pointers that the compiler would rather move around. */
#define READ(field) (*(volatile __typeof__(field) *)&(field))

/* What is written above is written before what is written below, as far as the compiler is concerned. */
#define IN_ORDER() asm volatile("" ::: "memory")

/* The verifier follows each value that a variable may have on its own.  Make it forget: *any* is something unknown to
 * it, and what comes out is *value*, of which it knows that it has no bit but *mask*'s.
 */
#define FORGET(value, any, mask)                                                                                       \
	({                                                                                                             \
		__u64 forgotten = (value);                                                                             \
		asm volatile("%0 += %1\n%0 -= %1\n%0 &= %2" : "+r"(forgotten) : "r"((__u64)(any)), "i"(mask));         \
		forgotten;                                                                                             \
	})

#endif
