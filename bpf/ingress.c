// SPDX-License-Identifier: GPL-2.0-only
/* What came back: received packets and bytes, on the slot of the connection that they answer. */
#include "packet.h"
#include "slots.h"

#define PASS 1

static __always_inline void add_received(struct __sk_buff *skb, struct leg *leg)
{
	struct flow_slot *slot = slot_kept(leg); /* egress, which alone changes its key, found the slot with it */

	if (!slot)
		slot = slot_of(leg);
	if (slot) {
		__sync_fetch_and_add(&slot->counters.received_packets, 1);
		__sync_fetch_and_add(&slot->counters.received_bytes, skb->len);
	}
}

/* Read who sent it, in terms of whom we would answer. */
static __always_inline int read_sender(struct __sk_buff *skb, struct packet *packet)
{
	__u8 ip[40] = {}, ports[2] = {};
	__u32 at = 40;

	if (skb->protocol == ETHERTYPE_IPV4) {
		if (bpf_skb_load_bytes(skb, 0, ip, 20))
			return -1;
		packet->protocol = ip[9];
		packet->address[0] = *(__u32 *)(ip + 12);
		at = (ip[0] & 0x0f) * 4;
	} else {
		if (bpf_skb_load_bytes(skb, 0, ip, 40))
			return -1;
		packet->protocol = ip[6];
		__builtin_memcpy(packet->address, ip + 8, 16);
	}
	at = FORGET(at, skb->len, 0x3f);
	if (packet->protocol == PROTOCOL_UDP || packet->protocol == PROTOCOL_SCTP) {
		if (bpf_skb_load_bytes(skb, at, ports, 2))
			return -1;
		packet->port = *(__u16 *)ports;
	}
	return 0;
}

static __always_inline void add_answer(struct __sk_buff *skb, struct socket_state *state)
{
	struct packet sender = {};
	__u32 found = LEGS;

	if (read_sender(skb, &sender))
		return;
#pragma unroll
	for (__u32 i = 0; i < LEGS; i++) {
		struct flow_key *key = &state->legs[i].key;

		if (goes_to(&sender, key->address, key->port) & (key->protocol == sender.protocol))
			found = i;
	}
	if (found == LEGS)
		return;
	add_received(skb, &state->legs[FORGET(found, skb->len, LEGS - 1)]);
}

/* Somebody else spoke first on a socket that has not sent anything yet: a server's, if it is UDP. */
static __always_inline void note_server(struct __sk_buff *skb, struct bpf_sock *sk, struct socket_state *state)
{
	sk = bpf_sk_fullsock(sk);
	if (sk && sk->type == DATAGRAM && sk->protocol == PROTOCOL_UDP && skb->ifindex != LOOPBACK_IFINDEX)
		state->direction = PASSIVE;
}

/* cgroup_skb/ingress: once per packet (GRO: once per super-packet) that a socket is about to receive. */
int ingress(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct socket_state *state;

	if (!sk)
		return PASS;
	state = state_of(sk);
	if (!state || state->direction == PASSIVE)
		return PASS;
	if (state->direction == ACTIVE && state->pod) {
		if (state->wire_family)
			add_received(skb, &state->legs[0]);
		else
			add_answer(skb, state);
	} else {
		note_server(skb, sk, state);
	}
	return PASS;
}
