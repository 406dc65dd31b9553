# Runs in a helper container, in the host's network: puts the sandboxes' rules into the host's packet filter.
#   ACTION apply | remove   BRIDGE the sandboxes' bridge   FORWARD, INPUT, REFUSAL our chains   TABLE what is in them
# Prints "guarded" when all is in place. Whatever it says else is for the service's log.
set -eu

# The engine may use either kind of iptables; rules of the other kind would not see its packets in the right order.
filter=
for each in iptables-nft iptables-legacy iptables; do
    if "$each" -w 5 -n -L DOCKER-USER >/dev/null 2>&1; then
        filter=$each
        break
    fi
done
if [ -z "$filter" ]; then
    echo "the engine's chain DOCKER-USER is not there" >&2
    exit 3
fi

# enter CHAIN OURS: packets of the bridge go to OURS first. Only the rules of other networks' guards may come before.
enter() {
    rule="-A $1 -i $BRIDGE -j $2"
    first=$("$filter" -w 5 -S "$1" | awk -v rule="$rule" '
        $0 == rule { found = 1; exit } /^-A/ && !/ -j ANKER-/ { exit } END { print found + 0 }')
    [ "$first" = 1 ] && return
    "$filter" -w 5 -I "$1" 1 -i "$BRIDGE" -j "$2"
    # The one from before goes last, so that there is one at any time.
    while :; do
        places=$("$filter" -w 5 -S "$1" | grep ^-A | grep -nFx -e "$rule" | cut -d: -f1)
        [ "$(echo "$places" | wc -l)" -gt 1 ] || break
        "$filter" -w 5 -D "$1" "$(echo "$places" | tail -n 1)"
    done
}

# leave CHAIN BRIDGE OURS
leave() {
    while "$filter" -w 5 -D "$1" -i "$2" -j "$3" 2>/dev/null; do :; done
    forget "$3"
}

forget() {
    "$filter" -w 5 -F "$1" 2>/dev/null && "$filter" -w 5 -X "$1"
}

# Sandboxes have no IPv6. Should one get it all the same, it leads nowhere.
six=$(echo "$filter" | sed s/iptables/ip6tables/)
close_six() {
    for chain in INPUT FORWARD; do
        "$six" -w 5 -C $chain -i "$BRIDGE" -j DROP 2>/dev/null || "$six" -w 5 -I $chain 1 -i "$BRIDGE" -j DROP
    done
}

open_six() {
    for chain in INPUT FORWARD; do
        while "$six" -w 5 -D $chain -i "$1" -j DROP 2>/dev/null; do :; done
    done
}

# Networks are also removed by hand, and their rules would stay for ever.
sweep() {
    [ -e "/sys/class/net/$BRIDGE" ] || return 0
    for word in $({ "$filter" -w 5 -S DOCKER-USER; "$six" -w 5 -S INPUT; } 2>/dev/null |
        sed -n 's/^-A [A-Z-]* -i anker-\([0-9a-f]*\) -j .*/\1/p' | sort -u); do
        [ -e "/sys/class/net/anker-$word" ] && continue
        leave DOCKER-USER "anker-$word" "ANKER-F-$word" || :
        leave INPUT "anker-$word" "ANKER-I-$word" || :
        forget "ANKER-R-$word" || :
        open_six "anker-$word"
    done
}

if [ "$ACTION" = apply ]; then
    printf '%s\n' "$TABLE" | "$filter-restore" -w 5 --noflush
    enter DOCKER-USER "$FORWARD"
    enter INPUT "$INPUT"
    if [ -e /proc/net/if_inet6 ]; then
        close_six || echo "IPv6 could not be closed on $BRIDGE" >&2
    fi
    sweep
else
    leave DOCKER-USER "$BRIDGE" "$FORWARD" || :
    leave INPUT "$BRIDGE" "$INPUT" || :
    forget "$REFUSAL" || :
    open_six "$BRIDGE"
fi
echo guarded
