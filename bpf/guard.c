// SPDX-License-Identifier: GPL-2.0-only
/* The wire guard: packets of a pod that no cgroup hook can see, on the host's side of its veth.
 *
 * A packet's socket survives the veth.  What an AF_INET or AF_INET6 socket sent, egress.c has seen; so each packet is
 * judged by itself, and no two counters have to agree.  Without a socket are also a few that the kernel sends by
 * itself: they carry no data, and are none of the app's.
 */
#include "packet.h"

#define TC_ACT_UNSPEC (-1)   /* whoever comes next decides: we only look */
#define FAMILY_INET 2
#define FAMILY_INET6 10
#define PROTOCOL_ICMP 1
#define PROTOCOL_IGMP 2
#define PROTOCOL_ICMPV6 58
#define ETHERNET_HEADER 14

/* The kernel's own: resets and acknowledgements for sockets that have gone, IGMP, and what IPv6 does on its links. */
static __always_inline int is_the_kernels(struct __sk_buff *skb)
{
	__u8 header[40] = {}, tcp[14] = {};
	__u32 at = ETHERNET_HEADER + 40, protocol;

	if (skb->protocol == ETHERTYPE_IPV4) {
		if (bpf_skb_load_bytes(skb, ETHERNET_HEADER, header, 20))
			return 0;
		protocol = header[9];
		at = ETHERNET_HEADER + (header[0] & 0x0f) * 4;
	} else {
		if (bpf_skb_load_bytes(skb, ETHERNET_HEADER, header, 40))
			return 0;
		protocol = header[6];
	}
	if (protocol != PROTOCOL_TCP)
		return protocol == PROTOCOL_ICMP || protocol == PROTOCOL_IGMP || protocol == PROTOCOL_ICMPV6 || !protocol;
	at = FORGET(at, skb->len, 0x7f);
	if (bpf_skb_load_bytes(skb, at, tcp, 14))
		return 0;
	return !(tcp[13] & TCP_SYN) && skb->len <= at + (tcp[12] >> 4) * 4;
}

/* tc ingress (clsact) of the veth's host end: everything that leaves the pod that way. */
int guard_wire(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (skb->protocol != ETHERTYPE_IPV4 && skb->protocol != ETHERTYPE_IPV6)
		return TC_ACT_UNSPEC;
	if (!sk) {
		if (!is_the_kernels(skb))
			tally(TALLY_UNSEEN);
	} else if (sk->family != FAMILY_INET && sk->family != FAMILY_INET6) {
		tally(TALLY_UNSEEN);
	}
	return TC_ACT_UNSPEC;
}
