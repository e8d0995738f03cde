"""What macOS's tools printed on real Macs, from public issues and pull requests.

Nothing is made up: each text stands as its source has it, cut to the lines that matter, without
serial numbers and spaces at the ends of lines; where a person's name stood in a path, `me` stands now.
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

# -- power ---------------------------------------------------------------------------------------

# https://github.com/spaceship-prompt/spaceship-prompt/pull/640
BATTERY = """\
Now drawing from 'Battery Power'
 -InternalBattery-0 (id=5374051)\t95%; discharging; 3:06 remaining present: true
"""
# https://github.com/imwally/battstat/issues/2 (El Capitan; no id)
BATTERY_WITHOUT_ID = """\
Now drawing from 'Battery Power'
 -InternalBattery-0 \t90%; discharging; (no estimate) present: true
"""
# https://github.com/imwally/battstat/issues/2
AC_NOT_CHARGING = """\
Now drawing from 'AC Power'
 -InternalBattery-0 \t88%; AC attached; not charging present: true
"""
# https://github.com/liquidprompt/liquidprompt/pull/317 (an iMac prints this only)
AC_DESKTOP = "Now drawing from 'AC Power'\n"

# https://github.com/prometheus/node_exporter/issues/2031 (Intel)
THERM_INTEL = """\
Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
2021-05-02 11:51:57 +0800 CPU Power notify
\tCPU_Scheduler_Limit \t= 100
\tCPU_Available_CPUs \t= 12
\tCPU_Speed_Limit \t= 100
"""
# https://github.com/yujitach/MenuMeters/issues/158 (Intel, throttled)
THERM_INTEL_HOT = """\
2020-06-26 12:30:37 +0200 CPU Power notify
\tCPU_Scheduler_Limit \t= 40
\tCPU_Available_CPUs \t= 8
\tCPU_Speed_Limit \t= 28
"""
# https://github.com/exelban/stats/issues/749 (M1 Pro)
THERM_APPLE_SILICON = """\
Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
Note: No CPU power status has been recorded
"""
# https://stanislas.blog/2025/12/macos-thermal-throttling-app (M2; the levels above 0 are in its text)
PRESSURE_NOMINAL = "com.apple.system.thermalpressurelevel 0\n"

# https://github.com/pirj/noclamshell/issues/4 (lid open, external display)
LID_OPEN_WITH_DISPLAY = """\
+-o IOPMrootDomain  <class IOPMrootDomain, id 0x100000116, registered, matched, active, busy 0 (93 ms), retain 99>
  | {
  |   "IOSleepSupported" = Yes
  |   "SleepRequestedByPID" = 94487
  |   "IOPMSystemSleepPolicyHandler" = Yes
  |   "AppleClamshellCausesSleep" = No
  |   "Last Sleep Reason" = "Software Sleep"
"""
# https://github.com/pirj/noclamshell/issues/16 (no external display)
LID_CAUSES_SLEEP = """\
+-o IOPMrootDomain  <class IOPMrootDomain, id 0x10000011a, registered, matched, active, busy 0 (353 ms), retain 133>
  | {
  |   "Wake Reason" = "EC.LidOpen"
  |   "IOSleepSupported" = Yes
  |   "AppleClamshellCausesSleep" = Yes
  |   "Last Sleep Reason" = "Clamshell Sleep"
"""
# The line of the lid itself is cut off in both. https://github.com/nghialuong/Lidless/issues/31 says that it
# is `Yes` with the lid closed; the form is that of the lines around it.
LID_LINE = '  |   "AppleClamshellState" = {}\n'

# -- the doctor ----------------------------------------------------------------------------------

# https://github.com/zeam-vm/cpu_info/issues/17 (iMac Pro 2017)
GPU_INTEL = """\
Graphics/Displays:

    Radeon Pro Vega 64:

      Chipset Model: Radeon Pro Vega 64
      Type: GPU
      Bus: PCIe
      PCIe Lane Width: x16
      VRAM (Total): 16 GB
      Vendor: AMD (0x1002)
      Device ID: 0x6860
      Metal: Supported, feature set macOS GPUFamily2 v1
      Displays:
        iMac:
          Display Type: Built-In Retina LCD
          Resolution: 5120 x 2880 Retina
"""
# github.com/PrismML-Eng/Bonsai-demo: community-benchmarks/ternary-bonsai/mlx-m4-24gb-macos.md (filtered by grep there)
GPU_M4 = """\
      Chipset Model: Apple M4
      Total Number of Cores: 10
      Metal Support: Metal 3
"""
# https://github.com/modular/rules_mojo/pull/56: "is empty on github actions machines"
GPU_NONE = ""

# https://github.com/ggml-org/whisper.cpp/issues/66 (`sysctl -n hw.optional.arm64` on an M1 Max)
ARM64 = "1\n"

# https://github.com/icngor/icngor.github.io/issues/5
XATTR_QUARANTINE = (
    "com.apple.quarantine: 0000;485e5e65;Firefox;|org.mozilla.firefox\npl.psionides: foo\n"
)
# https://github.com/buckets/application/issues/1116
XATTR_SAFARI = """\
com.apple.macl:
com.apple.provenance:
com.apple.quarantine: 01c3;6a42b8fb;Safari;555C0BCE-2B7C-401F-A783-29021AAB0615
"""
# https://github.com/keepassxreboot/keepassxc/issues/4934 (`xattr -p`, on stderr, of a file without it)
XATTR_NONE = "xattr: /Applications/KeePassXC.app: No such xattr: com.apple.quarantine\n"

# https://github.com/abiosoft/colima/issues/126
CONTEXTS_COLIMA_AND_DESKTOP = """\
NAME                TYPE                DESCRIPTION                               DOCKER ENDPOINT                                      KUBERNETES ENDPOINT   ORCHESTRATOR
colima *            moby                colima                                    unix:///Users/me/.colima/docker.sock
default             moby                Current DOCKER_HOST based configuration   unix:///var/run/docker.sock                                                swarm
desktop-linux       moby
"""
# https://github.com/abiosoft/colima/issues/1309
CONTEXTS_COLIMA = """\
NAME       DESCRIPTION                               DOCKER ENDPOINT                                             ERROR
colima *   colima                                    unix:///Users/me/.colima/default/docker.sock
default    Current DOCKER_HOST based configuration   unix:///var/run/docker.sock
"""

# https://github.com/solidjs/solid-hackernews/issues/11 (`curl "localhost:5000" -i` on Monterey)
AIRPLAY_SERVER = "AirTunes/620.8.2"
