/* SPDX-License-Identifier: GPL-2.0-only */
/* What is on the wire: a packet's headers, both families as one. */
#ifndef NODEAGENT_PACKET_H
#define NODEAGENT_PACKET_H

#include "maps.h"

#define STREAM 1             /* SOCK_*, as struct bpf_sock has them */
#define DATAGRAM 2
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_SCTP 132
#define ETHERTYPE_IPV4 0x0008 /* network order, as __sk_buff has it */
#define ETHERTYPE_IPV6 0xdd86
#define TCP_SYN 0x02
#define TCP_ACK 0x10
#define LOOPBACK_IFINDEX 1   /* in every namespace */

struct packet {
	__u32 address[4];        /* destination, as in struct flow_key */
	__u32 headers;           /* bytes: IP and transport */
	__u32 sequence;          /* TCP's, in network order: only compared */
	__u16 port;              /* destination's; 0: none, or a later fragment */
	__u8 protocol;
	__u8 family;
	__u8 flags;              /* TCP's */
};

/* Fill in addresses and protocol.  0 if that worked; options are stepped over, IPv6 extension headers are not. */
static __always_inline int read_ip(struct __sk_buff *skb, struct packet *packet)
{
	__u8 header[40] = {};

	if (skb->protocol == ETHERTYPE_IPV4) {
		if (bpf_skb_load_bytes(skb, 0, header, 20))
			return -1;
		packet->family = 4;
		packet->protocol = header[9];
		packet->headers = (header[0] & 0x0f) * 4;
		packet->address[0] = *(__u32 *)(header + 16);
		if (*(__u16 *)(header + 6) & 0xff1f)
			packet->protocol = 0; /* a later fragment: what follows is no header */
		return 0;
	}
	if (skb->protocol == ETHERTYPE_IPV6) {
		if (bpf_skb_load_bytes(skb, 0, header, 40))
			return -1;
		packet->family = 6;
		packet->protocol = header[6];
		packet->headers = 40;
		__builtin_memcpy(packet->address, header + 24, 16);
		return 0;
	}
	return -1;
}

static __always_inline int read_transport(struct __sk_buff *skb, struct packet *packet)
{
	__u8 header[16] = {};
	__u32 at = FORGET(packet->headers, skb->len, 0x3f);

	if (packet->protocol == PROTOCOL_TCP) {
		if (bpf_skb_load_bytes(skb, at, header, 14))
			return -1;
		packet->port = *(__u16 *)(header + 2);
		packet->sequence = *(__u32 *)(header + 4);
		packet->headers = at + (header[12] >> 4) * 4;
		packet->flags = header[13];
	} else if (packet->protocol == PROTOCOL_UDP || packet->protocol == PROTOCOL_SCTP) {
		if (bpf_skb_load_bytes(skb, at, header, 8))
			return -1;
		packet->port = *(__u16 *)(header + 2);
		packet->headers = at + 8;
	}
	return 0;
}

static __always_inline int read_packet(struct __sk_buff *skb, struct packet *packet)
{
	return read_ip(skb, packet) || read_transport(skb, packet);
}

static __always_inline int goes_to(struct packet *packet, const __u32 *address, __u16 port)
{
	return !((packet->address[0] ^ address[0]) | (packet->address[1] ^ address[1]) |
		 (packet->address[2] ^ address[2]) | (packet->address[3] ^ address[3]) | (packet->port ^ port));
}

static __always_inline int is_loopback(const __u32 *address, __u8 family)
{
	__u32 v4 = (address[0] & 0xff) ^ 127;
	__u32 v6 = address[0] | address[1] | address[2] | (address[3] ^ 0x01000000);

	return family == 4 ? !v4 : !v6;
}

static __always_inline __u32 segments(struct __sk_buff *skb)
{
	__u32 number = skb->gso_segs;

	return number ? number : 1;
}

#endif
