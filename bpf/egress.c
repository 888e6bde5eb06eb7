// SPDX-License-Identifier: GPL-2.0-only
/* Intercepted, or bypassed?  nat/OUTPUT rewrites the packet, never the socket: compare them, and count. */
#include "classify.h"
#include "packet.h"
#include "slots.h"

#define PASS 1
#define TCP_LISTEN 10

static __always_inline void add_sent(struct __sk_buff *skb, struct flow_slot *slot, __u32 headers, int is_first)
{
	__u32 number = segments(skb), length = skb->len;

	if (is_first)
		__sync_fetch_and_add(&slot->counters.connections, 1);
	__sync_fetch_and_add(&slot->counters.packets, 1);
	__sync_fetch_and_add(&slot->counters.segments, number);
	__sync_fetch_and_add(&slot->counters.bytes, length + (__u64)(number - 1) * headers);
	if (length > headers)
		__sync_fetch_and_add(&slot->counters.payload, length - headers);
}

/* The way of almost every packet: TCP, no SYN, to where the one before went, and its slot is still its own.
 * Nonzero if it was counted.  Comparisons are arithmetic: a chain of && costs the verifier thirty times as much.
 */
static __always_inline int count_warm(struct __sk_buff *skb, struct socket_state *state)
{
	__u8 *at = (__u8 *)(long)skb->data, *end = (__u8 *)(long)skb->data_end;
	__u32 difference = skb->ifindex ^ state->wire_ifindex, headers;
	struct flow_slot *slot;

	if (state->wire_family == 4) {
		if (at + 40 > end)
			return 0;
		difference |= (at[0] ^ 0x45) | (at[9] ^ PROTOCOL_TCP) | (at[33] & TCP_SYN);
		difference |= (*(__u32 *)(at + 16) ^ state->wire[0]) | (*(__u16 *)(at + 22) ^ state->wire_port);
		headers = 20 + (at[32] >> 4) * 4;
	} else if (state->wire_family == 6) {
		if (at + 60 > end)
			return 0;
		difference |= ((at[0] & 0xf0) ^ 0x60) | (at[6] ^ PROTOCOL_TCP) | (at[53] & TCP_SYN);
		difference |= (*(__u32 *)(at + 24) ^ state->wire[0]) | (*(__u32 *)(at + 28) ^ state->wire[1]);
		difference |= (*(__u32 *)(at + 32) ^ state->wire[2]) | (*(__u32 *)(at + 36) ^ state->wire[3]);
		difference |= *(__u16 *)(at + 42) ^ state->wire_port;
		headers = 40 + (at[52] >> 4) * 4;
	} else {
		return 0;
	}
	if (difference)
		return 0;
	slot = slot_kept(&state->legs[0]);
	if (!slot)
		return 0;
	add_sent(skb, slot, headers, 0);
	return 1;
}

/* A socket older than counting: it was dialled if somebody listens on its port.  Fails to know a connection whose
 * listener has gone since.
 */
static __always_inline int was_dialled(struct __sk_buff *skb, struct bpf_sock *sk, __u8 family)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *listener;
	__u32 size = sizeof(tuple.ipv4);
	int found = 0;

	if (family == 4) {
		tuple.ipv4.daddr = READ(sk->src_ip4);
		tuple.ipv4.dport = bpf_htons(sk->src_port);
	} else {
		tuple.ipv6.daddr[0] = READ(sk->src_ip6[0]);
		tuple.ipv6.daddr[1] = READ(sk->src_ip6[1]);
		tuple.ipv6.daddr[2] = READ(sk->src_ip6[2]);
		tuple.ipv6.daddr[3] = READ(sk->src_ip6[3]);
		tuple.ipv6.dport = bpf_htons(sk->src_port);
		size = sizeof(tuple.ipv6);
	}
	listener = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (listener) {
		found = listener->state == TCP_LISTEN;
		bpf_sk_release(listener);
	}
	return found;
}

/* Which of a datagram socket's connections it is: the leg with that destination, or the oldest one made anew. */
static __always_inline __u32 leg_to(struct socket_state *state, struct flow_key *key, int *is_first)
{
	__u32 found = LEGS;

#pragma unroll
	for (__u32 i = 0; i < LEGS; i++) {
		struct flow_key *other = &state->legs[i].key;
		__u32 difference = (other->address[0] ^ key->address[0]) | (other->address[1] ^ key->address[1]) |
				   (other->address[2] ^ key->address[2]) | (other->address[3] ^ key->address[3]) |
				   (other->port ^ key->port) | (other->protocol ^ key->protocol);

		if (!difference)
			found = i;
	}
	if (found == LEGS) {
		*is_first = 1;
		found = state->next_leg++;
	}
	return FORGET(found, state->gid, LEGS - 1);
}

/* Epoch and flags of a packet's connection: those that it began with, unless it begins here. */
static __always_inline void remember_beginning(struct flow_key *key, struct flow_key *before, struct pod *pod,
					       int begins, int unseen)
{
	__u8 escaped = 0;

	if (begins) {
		key->epoch = pod->epoch;
		key->flags = unseen ? FLAG_UNSEEN : 0;
		return;
	}
	if (key->class == CLASS_BYPASSED && (before->class == CLASS_INTERCEPTED || before->flags & FLAG_ESCAPED))
		escaped = FLAG_ESCAPED;
	key->epoch = before->epoch;
	key->flags = (before->flags & FLAG_UNSEEN) | escaped;
}

static __always_inline void count_tcp(struct __sk_buff *skb, struct bpf_sock *sk, struct socket_state *state,
				      struct pod *pod, struct packet *packet, struct flow_key *key)
{
	struct leg *leg = &state->legs[0];
	int is_syn = (packet->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	int is_first = is_syn && (state->direction != ACTIVE || state->sequence != packet->sequence);
	int is_unseen = !is_first && state->direction == DIRECTION_UNKNOWN;
	struct flow_slot *slot;

	if (is_unseen && key->class != CLASS_INTERCEPTED && was_dialled(skb, sk, packet->family)) {
		state->direction = PASSIVE;
		return;
	}
	state->direction = ACTIVE;
	if (is_first)
		state->sequence = packet->sequence;
	remember_beginning(key, &leg->key, pod, is_first | is_unseen, is_unseen);
	leg->key = *key;
	__builtin_memcpy(state->wire, packet->address, sizeof(state->wire));
	state->wire_port = packet->port;
	state->wire_ifindex = skb->ifindex;
	state->wire_family = packet->family;
	slot = slot_of(leg);
	if (slot)
		add_sent(skb, slot, packet->headers, is_first);
}

static __always_inline void count_datagram(struct __sk_buff *skb, struct socket_state *state, struct pod *pod,
					   struct packet *packet, struct flow_key *key)
{
	int is_first = 0, begins;
	__u32 which = leg_to(state, key, &is_first);
	struct leg *leg = &state->legs[which & (LEGS - 1)];
	struct flow_slot *slot;

	state->direction = ACTIVE;
	/* nat judges a datagram anew once its mapping has gone, and a change of the rules removes mappings */
	begins = is_first || (leg->key.class != key->class && leg->key.epoch != pod->epoch);
	remember_beginning(key, &leg->key, pod, begins, is_first && (!state->born || state->spoke));
	leg->key = *key;
	slot = slot_of(leg);
	if (slot)
		add_sent(skb, slot, packet->headers, is_first);
}

static __always_inline void count_cold(struct __sk_buff *skb, struct bpf_sock *sk, struct socket_state *state)
{
	struct config *config = the_config();
	struct packet packet = {};
	struct flow_key key = {};
	struct pod *pod;

	if (!config)
		return;
	if (state->roster != config->roster)
		identify(skb, state, config);
	if (!state->pod) /* most of what a node itself sends */
		return;
	pod = pod_of(state->pod);
	if (!pod)
		return;
	if (read_packet(skb, &packet)) {
		tally(TALLY_UNREADABLE);
		return;
	}
	packet.protocol = FORGET(packet.protocol, skb->len, 0xff);
	packet.headers = FORGET(packet.headers, skb->len, 0xff);
	packet.port = FORGET(packet.port, skb->len, 0xffff);
	read_dialled(sk, state, &packet, &key);
	key.owner = FORGET(owner_of(skb, state), skb->len, 0xff);
	key.class = class_of(skb, pod, &packet, &key, is_sidecar(state, key.owner));
	if (key.class == NOT_EGRESS)
		return;
	key.class = FORGET(key.class, skb->len, CLASSES - 1);
	key.pod = state->pod;
	key.container = state->container;
	key.ifindex = skb->ifindex;
	key.protocol = packet.protocol;
	key.family = packet.family;
	if (packet.protocol == PROTOCOL_TCP && sk->type == STREAM)
		count_tcp(skb, sk, state, pod, &packet, &key);
	else
		count_datagram(skb, state, pod, &packet, &key);
}

/* cgroup_skb/egress: after POSTROUTING, once per packet (GSO: once per super-packet), with the socket attached.
 * Blind to AF_PACKET and to what the kernel answers by itself (guard.c sees those), and to what is dropped later.
 */
int egress(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct socket_state *state;

	if (!sk)
		return PASS;
	state = state_of(sk);
	if (state && (state->direction == PASSIVE || count_warm(skb, state)))
		return PASS;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->state == TCP_LISTEN)
		return PASS;
	if (!state)
		state = state_made_for(sk);
	if (state)
		count_cold(skb, sk, state);
	else
		tally(TALLY_NO_STATE);
	return PASS;
}
