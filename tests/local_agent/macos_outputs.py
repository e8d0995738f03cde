"""What macOS's tools printed on real Macs, from public issues and pull requests.

Nothing is made up: each text stands as its source has it, cut to the lines that matter, without
serial numbers; where a person's name stood in a path, `me` stands now.
"""

from __future__ import annotations

# https://github.com/ollama/ollama/issues/7255 (M1, 16 GB)
VM_STAT_M1 = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                              355378.
Pages active:                            222569.
Pages inactive:                          166967.
Pages speculative:                        56413.
Pages throttled:                              0.
Pages wired down:                        143109.
Pages purgeable:                           3946.
"Translation faults":                 587255247.
Pages copy-on-write:                   34600275.
Pages zero filled:                    362639528.
Pages reactivated:                     25894941.
Pages purged:                           4050873.
File-backed pages:                       148451.
Anonymous pages:                         297498.
Pages stored in compressor:              950231.
Pages occupied by compressor:             55586.
Decompressions:                        17560851.
Compressions:                          29079259.
Pageins:                               18811038.
Pageouts:                               1571431.
Swapins:                                 729059.
Swapouts:                               6987980.
"""

# https://github.com/wazuh/wazuh/issues/22113 (Intel)
VM_STAT_INTEL = """\
Mach Virtual Memory Statistics: (page size of 4096 bytes)
Pages free:                             6127229.
Pages active:                            485320.
Pages inactive:                          628646.
Pages speculative:                       430715.
Pages throttled:                              0.
Pages wired down:                        715958.
Pages purgeable:                          11820.
"Translation faults":                  11477162.
Pages copy-on-write:                     356264.
Pages zero filled:                      7628050.
Pages reactivated:                         9561.
Pages purged:                              1423.
File-backed pages:                      1080348.
Anonymous pages:                         464333.
Pages stored in compressor:                   0.
Pages occupied by compressor:                 0.
Decompressions:                               0.
Compressions:                                 0.
Pageins:                                 280307.
Pageouts:                                     0.
Swapins:                                      0.
Swapouts:                                     0.
"""

# https://github.com/chainguard-dev/melange/pull/2010
SYSCTL_MEMSIZE = "hw.memsize: 38654705664\n"
# https://github.com/AlexsJones/llmfit/issues/570 (M1 Max, 32 GB, after `sudo sysctl iogpu.wired_limit_mb=26000`)
SYSCTL_WIRED_LIMIT_SET = "iogpu.wired_limit_mb: 26000 -> 26000\n"
# https://github.com/walles/px/issues/80
SYSCTL_SWAP = "vm.swapusage: total = 4096.00M  used = 2743.50M  free = 1352.50M  (encrypted)\n"
# https://github.com/electron/build-tools/issues/306 (Intel; on stderr)
SYSCTL_UNKNOWN = "sysctl: unknown oid 'sysctl.proc_translated'\n"
