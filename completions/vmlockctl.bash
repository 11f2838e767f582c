# bash completion for vmlockctl                                            -*- shell-script -*-

_vmlockctl_options() {
    local common="--lockspace --run-dir --json --debug --quiet --help"
    local leasing="--lver --wait --vm --uuid --allow-alias --require-level"
    case $1 in
        "")             echo "$common --version" ;;
        init-lockspace) echo "--name --host-id --host-name --io-timeout --sector-size --align --owner --group --mode --force $common" ;;
        add-host)       echo "--host-id --host-name --io-timeout --foreground $common" ;;
        acquire)        echo "--pid --shared $leasing $common" ;;
        release)        echo "--pid --to-shared --evidence --wait --i-know $common" ;;
        request)        echo "--force --clear $common" ;;
        run)            echo "--disk --conflict-exit-code --no-auto-disks $leasing $common" ;;
        status)         echo "--watch --interval --observe --images $common" ;;
        explain)        echo "--watch --observe $common" ;;
        dump-leases)    echo "--all-blocks --images $common" ;;
        check-orphans)  echo "--fix --prune --dry-run --yes --images --observe --nagios $common" ;;
        *)              echo "$common" ;;
    esac
}

_vmlockctl() {
    local commands="init-lockspace add-host remove-host acquire release request run status dump-leases explain check-orphans daemon selftest"
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} command="" index
    COMPREPLY=()

    for ((index = 1; index < COMP_CWORD; index++)); do
        case ${COMP_WORDS[index]} in
            --run-dir | --lockspace | -L) ((index++)) ;;
            -*) ;;
            *)
                command=${COMP_WORDS[index]}
                break
                ;;
        esac
    done
    # After "run ... --" stands somebody else's command line.
    if [[ $command == run ]]; then
        for ((index++; index < COMP_CWORD; index++)); do
            if [[ ${COMP_WORDS[index]} == -- ]]; then
                declare -F _command_offset >/dev/null && _command_offset $((index + 1))
                return
            fi
        done
    fi

    case $previous in
        --run-dir | --images) mapfile -t COMPREPLY < <(compgen -d -- "$current") && return ;;
        --pid) mapfile -t COMPREPLY < <(compgen -W "$(ps -eo pid=)" -- "$current") && return ;;
        --owner) mapfile -t COMPREPLY < <(compgen -u -- "$current") && return ;;
        --group) mapfile -t COMPREPLY < <(compgen -g -- "$current") && return ;;
        --sector-size) mapfile -t COMPREPLY < <(compgen -W "512 4096" -- "$current") && return ;;
        --align) mapfile -t COMPREPLY < <(compgen -W "1M 2M 4M 8M" -- "$current") && return ;;
        --require-level) mapfile -t COMPREPLY < <(compgen -W "1 2 3" -- "$current") && return ;;
        --host-id) mapfile -t COMPREPLY < <(compgen -W "auto" -- "$current") && return ;;
    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_vmlockctl_options "$command")" -- "$current")
    elif [[ -z $command ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$current")
    else
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
    fi
}

complete -o filenames -F _vmlockctl vmlockctl
