/* SPDX-License-Identifier: GPL-2.0-only */
/* Whose packet is it, where did its socket want it to go, and which class does that make it? */
#ifndef NODEAGENT_CLASSIFY_H
#define NODEAGENT_CLASSIFY_H

#include "maps.h"
#include "packet.h"

#define NOT_EGRESS 0xff      /* the pod talking to itself */

/* Find the socket's pod: the first ancestor of its cgroup that is one, else its namespace. */
static __always_inline void identify(struct __sk_buff *skb, struct socket_state *state, struct config *config)
{
	__u64 pod = 0, container = 0;

#pragma unroll
	for (int i = 0; i < LEVELS; i++) {
		__u32 level = config->levels[i];
		__u64 id;

		if (pod || !level)
			continue;
		id = bpf_skb_ancestor_cgroup_id(skb, level);
		if (id && pod_of(id)) {
			pod = id;
			container = bpf_skb_ancestor_cgroup_id(skb, level + 1);
		}
	}
	if (!pod && state->netns && pod_of(NETNS_POD | state->netns))
		pod = NETNS_POD | state->netns;
	if (!pod)
		state->spoke = 1;
	state->pod = pod;
	state->container = container;
	state->roster = config->roster;
}

static __always_inline int is_owner(__u64 pod, __u32 id, __u32 kind)
{
	struct owner owner = {.pod = pod, .id = id, .kind = kind};

	return bpf_map_lookup_elem(MAP(MAP_OWNERS), &owner) != 0;
}

static __always_inline __u8 owner_of(struct __sk_buff *skb, struct socket_state *state)
{
	__u8 owner = 0;

	if (is_owner(state->pod, bpf_get_socket_uid(skb), OWNED_BY_UID))
		owner |= OWNER_UID;
	if (!state->born)
		owner |= OWNER_GID_UNKNOWN;
	else if (is_owner(state->pod, state->gid, OWNED_BY_GID))
		owner |= OWNER_GID;
	return owner;
}

static __always_inline int is_sidecar(struct socket_state *state, __u8 owner)
{
	__u64 container = state->container, *pod;

	if (state->pod & NETNS_POD) /* no cgroup tells an impostor here */
		return owner & (OWNER_UID | OWNER_GID);
	pod = bpf_map_lookup_elem(MAP(MAP_SIDECARS), &container);
	return pod && *pod == state->pod;
}

/* Where the socket wanted it to go: nat rewrites the packet, never the socket.
 *
 * The packet's family decides which of the socket's two addresses counts: an IPv6 socket that dialled a v4-mapped
 * address has it in both.  A datagram may have an address of its own (sendmsg.c).  Raw sockets are not translated
 * in a way that anybody could tell: their packets went where they wanted to.
 */
static __always_inline void read_dialled(struct bpf_sock *sk, struct socket_state *state, struct packet *packet,
					 struct flow_key *key)
{
	__u32 connected[4] = {};
	__u16 port = *(__u32 *)&sk->dst_port; /* Linux before 5.16 has it in the lower half of 32 bits */
	int is_tcp = packet->protocol == PROTOCOL_TCP && sk->type == STREAM;
	int is_udp = packet->protocol == PROTOCOL_UDP && sk->type == DATAGRAM;

	key->port = packet->port;
	__builtin_memcpy(key->address, packet->address, sizeof(key->address));
	if (!is_tcp && !is_udp)
		return;
	if (packet->family == 4) {
		connected[0] = READ(sk->dst_ip4);
	} else {
		connected[0] = READ(sk->dst_ip6[0]);
		connected[1] = READ(sk->dst_ip6[1]);
		connected[2] = READ(sk->dst_ip6[2]);
		connected[3] = READ(sk->dst_ip6[3]);
	}
	if (is_udp && state->dialled_port && !(port && goes_to(packet, connected, port))) {
		key->port = state->dialled_port;
		__builtin_memcpy(key->address, state->dialled, sizeof(key->address));
		if (port)
			state->dialled_port = 0; /* its next send may have no address of its own */
	} else if (port) {
		key->port = port;
		__builtin_memcpy(key->address, connected, sizeof(key->address));
	}
}

static __always_inline __u8 class_of(struct __sk_buff *skb, struct pod *pod, struct packet *packet,
				     struct flow_key *key, int sidecar)
{
	int same = goes_to(packet, key->address, key->port);
	int on_loopback = skb->ifindex == LOOPBACK_IFINDEX;
	int diverted = pod->tproxy_mark && skb->mark == pod->tproxy_mark;

	if (same && on_loopback && !diverted)
		return NOT_EGRESS;
	if (sidecar)
		return CLASS_PROXY;
	if (same)
		return on_loopback ? CLASS_INTERCEPTED : CLASS_BYPASSED;
	if (is_loopback(packet->address, packet->family) &&
	    (packet->port == pod->proxy_port || packet->port == pod->dns_port))
		return CLASS_INTERCEPTED;
	return CLASS_TRANSLATED;
}

#endif
