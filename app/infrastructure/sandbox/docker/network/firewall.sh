# Applies or removes the firewall rules of one sandbox network. Runs in a helper container on the host's network.
#   ACTION         apply | remove
#   BRIDGE         bridge of the network
#   FORWARD_CHAIN, INPUT_CHAIN, REJECT_CHAIN   names of the network's chains
#   TABLE          their contents, as input for iptables-restore; a rule with @host-networks@ stands for one rule for
#                  each network of the host's interfaces
# Prints "done" on success. Any other output goes to the service's log.
set -eu

# Use the variant of iptables that has the engine's chain: rules of the other variant would see packets in another order.
iptables=
for each in iptables-nft iptables-legacy iptables; do
    if "$each" -w 5 -n -L DOCKER-USER >/dev/null 2>&1; then
        iptables=$each
        break
    fi
done
if [ -z "$iptables" ]; then
    echo "the engine's chain DOCKER-USER does not exist" >&2
    exit 3
fi
ip6tables=$(echo "$iptables" | sed s/iptables/ip6tables/)

# insert_jump CHAIN TARGET: make CHAIN send packets of the bridge to TARGET first. Only jumps of other sandbox networks
# may come before.
insert_jump() {
    rule="-A $1 -i $BRIDGE -j $2"
    first=$("$iptables" -w 5 -S "$1" | awk -v rule="$rule" '
        $0 == rule { found = 1; exit } /^-A/ && !/ -j ANKER-/ { exit } END { print found + 0 }')
    [ "$first" = 1 ] && return
    "$iptables" -w 5 -I "$1" 1 -i "$BRIDGE" -j "$2"
    # Remove older copies of the rule after the insertion, so that one is in place at any time.
    while :; do
        positions=$("$iptables" -w 5 -S "$1" | grep ^-A | grep -nFx -e "$rule" | cut -d: -f1)
        [ "$(echo "$positions" | wc -l)" -gt 1 ] || break
        "$iptables" -w 5 -D "$1" "$(echo "$positions" | tail -n 1)"
    done
}

# remove_jump BRIDGE TARGET CHAIN…: remove the jumps from each CHAIN to TARGET, and TARGET.
remove_jump() {
    bridge=$1 target=$2
    shift 2
    for chain in "$@"; do
        while "$iptables" -w 5 -D "$chain" -i "$bridge" -j "$target" 2>/dev/null; do :; done
    done
    remove_chain "$target"
}

remove_chain() {
    "$iptables" -w 5 -F "$1" 2>/dev/null && "$iptables" -w 5 -X "$1"
}

# Sandboxes have no IPv6. If one gets an address nevertheless, drop its packets.
drop_ipv6() {
    for chain in INPUT FORWARD; do
        "$ip6tables" -w 5 -C $chain -i "$BRIDGE" -j DROP 2>/dev/null ||
            "$ip6tables" -w 5 -I $chain 1 -i "$BRIDGE" -j DROP
    done
}

# remove_ipv6_drop BRIDGE
remove_ipv6_drop() {
    for chain in INPUT FORWARD; do
        while "$ip6tables" -w 5 -D $chain -i "$1" -j DROP 2>/dev/null; do :; done
    done
}

# Remove the rules of sandbox networks that were removed by hand.
remove_stale_rules() {
    [ -e "/sys/class/net/$BRIDGE" ] || return 0
    for id in $({ "$iptables" -w 5 -S DOCKER-USER; "$ip6tables" -w 5 -S INPUT; } 2>/dev/null |
        sed -n 's/^-A [A-Z-]* -i anker-\([0-9a-f]*\) -j .*/\1/p' | sort -u); do
        [ -e "/sys/class/net/anker-$id" ] && continue
        remove_jump "anker-$id" "ANKER-F-$id" FORWARD DOCKER-USER || :
        remove_jump "anker-$id" "ANKER-I-$id" INPUT || :
        remove_chain "ANKER-R-$id" || :
        remove_ipv6_drop "anker-$id"
    done
}

# Print TABLE with the networks of the host's interfaces, at both ends of point-to-point links.
complete_table() {
    addresses=$(ip -4 -o addr show) || exit
    networks=$(echo "$addresses" | awk '{ for (i = 3; i < NF; i++) if ($i == "inet" || $i == "peer") print $(i + 1) }')
    printf '%s\n' "$TABLE" | awk -v networks="$networks" '
        !/@host-networks@/ { print; next }
        { count = split(networks, each); for (i = 1; i <= count; i++) { line = $0; sub(/@[^@]*@/, each[i], line); print line } }'
}

if [ "$ACTION" = apply ]; then
    table=$(complete_table)
    printf '%s\n' "$table" | "$iptables-restore" -w 5 --noflush
    insert_jump DOCKER-USER "$FORWARD_CHAIN"
    # Whenever a network is created, the engine removes its jump to DOCKER-USER for a moment.
    insert_jump FORWARD "$FORWARD_CHAIN"
    insert_jump INPUT "$INPUT_CHAIN"
    if [ -e /proc/net/if_inet6 ]; then
        drop_ipv6 || echo "could not drop IPv6 packets of $BRIDGE" >&2
    fi
    remove_stale_rules
else
    remove_jump "$BRIDGE" "$FORWARD_CHAIN" FORWARD DOCKER-USER || :
    remove_jump "$BRIDGE" "$INPUT_CHAIN" INPUT || :
    remove_chain "$REJECT_CHAIN" || :
    remove_ipv6_drop "$BRIDGE"
fi
echo done
