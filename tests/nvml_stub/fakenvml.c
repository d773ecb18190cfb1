/* A libnvidia-ml.so.1 for tests: the real pynvml loads it in place of the driver's.
 *
 * $FAKENVML_SCRIPT names a file of key=value lines, read again at each call:
 *   count=2                            boards; one if not said
 *   dev0.uuid=GPU-..., dev1.temperature=52, field.185=626000, dev0.field.82.type=1, gpm.5=12.5, ...
 *                                      values, of one board or of all
 *   nvmlInitWithFlags.ret=9            what a function returns; dev0.<function>.ret, field.185.ret, gpm.5.ret likewise
 *   dev0.ret=15                        what every function returns for this board
 *   <function>.wait_for=/path          the call returns only once this file exists
 *   dev0.mig=1, dev0.mig.max=7, dev0.mig.2=MIG-..., dev0.mig.2.gi=5, dev0.mig.2.memory.used=...
 *   xid=79, xid.serial=1               an event for board 0; a higher serial is a further one
 * $FAKENVML_TRACE names a file that gets a line "pid function" for each call.
 *
 * As strict as the driver about: init in this process, handles, struct versions, sizes, indices, GPM samples.
 * Struct layouts are those of nvml.h; tests compare their sizes with pynvml's. That the driver behaves like this
 * is a claim: tests/gpu compares values with nvidia-smi on a real board.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BOARDS 16
#define SLOTS 8
enum { OK, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10,
       VERSION_MISMATCH = 25 };
typedef unsigned int uint;
typedef unsigned long long ull;

struct device { int board, slot; };                     /* slot -1: the board itself */
static struct device devices[BOARDS * (SLOTS + 1)];
static pid_t initialised_in;
static __thread char script[65536];

typedef struct { ull total, free, used; } Memory;
typedef struct { uint version; ull total, reserved, free, used; } Memory_v2;
typedef struct { uint gpu, memory; } Utilization;
typedef struct { uint version; int sensor; int temperature; } Temperature;
typedef struct { char busIdLegacy[16]; uint domain, bus, device, pciDeviceId, pciSubSystemId; char busId[32]; } PciInfo;
typedef struct { uint pid; ull used; uint gpuInstanceId, computeInstanceId; } ProcessInfo;
typedef union { double d; uint ui; unsigned long ul; ull u; long long s; int si; unsigned short us; } Value;
typedef struct { uint field, scope; long long timestamp, latency; uint type, ret; Value value; } FieldValue;
typedef struct { struct device *device; ull type, data; uint gpuInstance, computeInstance; } EventData;
typedef struct { struct device *device; int taken; } GpmSample;
typedef struct { uint id, ret; double value; char *text[3]; } GpmMetric;
typedef struct { uint version, count; GpmSample *first, *second; GpmMetric metrics[]; } GpmMetricsGet;
typedef struct { uint version, supported; } GpmSupport;

/* For the test of sizes, in this order. */
const uint fakenvml_sizes[] = { sizeof(Memory), sizeof(Memory_v2), sizeof(Utilization), sizeof(Temperature),
    sizeof(PciInfo), sizeof(ProcessInfo), sizeof(FieldValue), sizeof(EventData), sizeof(GpmMetric),
    sizeof(GpmSupport) };

static void read_script(void) {
    const char *path = getenv("FAKENVML_SCRIPT");
    FILE *file = path ? fopen(path, "r") : NULL;
    size_t length = 0;
    script[0] = '\n';
    if (file) { length = fread(script + 1, 1, sizeof script - 3, file); fclose(file); }
    script[length + 1] = '\n';
    script[length + 2] = 0;
}

static int look_up(const char *key, char *into, size_t size) {
    char line[160];
    snprintf(line, sizeof line, "\n%s=", key);
    const char *found = strstr(script, line);
    if (!found) return 0;
    found += strlen(line);
    size_t length = strcspn(found, "\n");
    if (length >= size) length = size - 1;
    memcpy(into, found, length);
    into[length] = 0;
    return 1;
}

/* The value for this device: of the MIG instance, of the board, of all. */
static int text(const struct device *d, const char *key, char *into, size_t size) {
    char full[160];
    if (d && d->slot >= 0) {
        snprintf(full, sizeof full, "dev%d.mig.%d.%s", d->board, d->slot, key);
        if (look_up(full, into, size)) return 1;
    }
    if (d && d->slot < 0) {
        snprintf(full, sizeof full, "dev%d.%s", d->board, key);
        if (look_up(full, into, size)) return 1;
    }
    return look_up(key, into, size);
}

static double number(const struct device *d, const char *key, double otherwise) {
    char value[64];
    return text(d, key, value, sizeof value) ? strtod(value, NULL) : otherwise;
}

static ull integer(const struct device *d, const char *key, ull otherwise) {
    char value[64];
    return text(d, key, value, sizeof value) ? strtoull(value, NULL, 0) : otherwise;
}

static int scripted(const struct device *d, const char *function) {
    char key[160];
    snprintf(key, sizeof key, "%s.wait_for", function);
    char path[256];
    if (text(d, key, path, sizeof path)) while (access(path, F_OK)) usleep(1000);
    snprintf(key, sizeof key, "%s.ret", function);
    int ret = (int)integer(d, key, 0);
    if (ret || !d) return ret;
    snprintf(key, sizeof key, "dev%d.ret", d->board);
    return (int)integer(NULL, key, 0);
}

static int begin(const char *function) {
    const char *path = getenv("FAKENVML_TRACE");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) { fprintf(file, "%d %s\n", (int)getpid(), function); fclose(file); }
    read_script();
    return OK;
}

static int enter(const char *function) {
    begin(function);
    return initialised_in == getpid() ? scripted(NULL, function) : UNINITIALIZED;
}

static int boards(void) { return (int)integer(NULL, "count", 1); }

static int enter_device(const char *function, struct device *d) {
    begin(function);
    if (initialised_in != getpid()) return UNINITIALIZED;
    if (d < devices || d >= devices + BOARDS * (SLOTS + 1)) return INVALID_ARGUMENT;
    if (d->slot >= 0) {
        char uuid[96];
        if (!text(d, "", uuid, sizeof uuid)) {
            char key[64];
            snprintf(key, sizeof key, "dev%d.mig.%d", d->board, d->slot);
            if (!look_up(key, uuid, sizeof uuid)) return INVALID_ARGUMENT;     /* the instance was destroyed */
        }
    }
    return scripted(d, function);
}

#define ENTER() do { int ret_ = enter(__func__); if (ret_) return ret_; } while (0)
#define DEVICE(d) do { int ret_ = enter_device(__func__, d); if (ret_) return ret_; } while (0)
#define NOT_ON_MIG(d) do { if ((d)->slot >= 0) return NOT_SUPPORTED; } while (0)

int nvmlInitWithFlags(uint flags) {
    begin(__func__);
    int ret = scripted(NULL, __func__);
    if (ret || flags & ~3u) return ret ? ret : INVALID_ARGUMENT;
    for (int i = 0; i < BOARDS * (SLOTS + 1); i++) {
        devices[i].board = i / (SLOTS + 1);
        devices[i].slot = i % (SLOTS + 1) - 1;
    }
    initialised_in = getpid();
    return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { ENTER(); initialised_in = 0; return OK; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the stub"; }

static int give_text(const struct device *d, const char *key, const char *otherwise, char *into, uint size) {
    char value[96];
    if (!text(d, key, value, sizeof value)) snprintf(value, sizeof value, "%s", otherwise);
    if (strlen(value) + 1 > size) return INSUFFICIENT_SIZE;
    strcpy(into, value);
    return OK;
}

int nvmlSystemGetDriverVersion(char *into, uint size) {
    ENTER(); return give_text(NULL, "driver", "580.105.08", into, size);
}
int nvmlDeviceGetCount_v2(uint *count) { ENTER(); *count = (uint)boards(); return OK; }
int nvmlDeviceGetHandleByIndex_v2(uint index, struct device **d) {
    ENTER();
    if ((int)index >= boards()) return INVALID_ARGUMENT;
    *d = &devices[index * (SLOTS + 1)];
    return scripted(*d, __func__);
}
static void uuid_of(const struct device *d, char *into, uint size) {
    char key[64], otherwise[96];
    if (d->slot < 0) {
        snprintf(otherwise, sizeof otherwise, "GPU-%08x-0000-0000-0000-000000000000", d->board);
        give_text(d, "uuid", otherwise, into, size);
    } else {
        snprintf(key, sizeof key, "dev%d.mig.%d", d->board, d->slot);
        into[0] = 0;
        look_up(key, into, size);
    }
}
int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **d) {
    ENTER();
    for (int i = 0; i < boards() * (SLOTS + 1); i++) {
        char own[96];
        uuid_of(&devices[i], own, sizeof own);
        if (own[0] && !strcmp(own, uuid)) { *d = &devices[i]; return scripted(*d, __func__); }
    }
    return NOT_FOUND;
}
int nvmlDeviceGetUUID(struct device *d, char *into, uint size) {
    DEVICE(d);
    if (size < 96) return INSUFFICIENT_SIZE;
    uuid_of(d, into, size);
    return OK;
}
int nvmlDeviceGetName(struct device *d, char *into, uint size) {
    DEVICE(d); return give_text(d, "name", d->slot < 0 ? "NVIDIA H200" : "NVIDIA H200 MIG 1g.18gb", into, size);
}
int nvmlDeviceGetPciInfo_v3(struct device *d, PciInfo *info) {
    DEVICE(d);
    memset(info, 0, sizeof *info);
    info->bus = 0x1a + (uint)d->board;
    snprintf(info->busId, sizeof info->busId, "00000000:%02X:00.0", info->bus);
    return OK;
}

/* -- MIG -- */
int nvmlDeviceGetMigMode(struct device *d, uint *current, uint *pending) {
    DEVICE(d); NOT_ON_MIG(d);
    *current = *pending = (uint)integer(d, "mig", 0);
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(struct device *d, uint *count) {
    DEVICE(d); *count = (uint)integer(d, "mig.max", 7); return OK;
}
int nvmlDeviceGetMigDeviceHandleByIndex(struct device *d, uint slot, struct device **instance) {
    DEVICE(d);
    char uuid[96];
    if (slot >= SLOTS) return INVALID_ARGUMENT;
    uuid_of(d + 1 + slot, uuid, sizeof uuid);
    if (!uuid[0]) return NOT_FOUND;
    *instance = d + 1 + slot;
    return OK;
}
int nvmlDeviceGetGpuInstanceId(struct device *d, uint *id) {
    DEVICE(d);
    if (d->slot < 0) return NOT_SUPPORTED;
    *id = (uint)integer(d, "gi", 1);
    return OK;
}

/* -- the fast calls -- */
int nvmlDeviceGetMemoryInfo_v2(struct device *d, Memory_v2 *memory) {
    if (memory->version != 0x02000028) return VERSION_MISMATCH;
    DEVICE(d);
    memory->total = integer(d, "memory.total", 150754820096ULL);
    memory->reserved = integer(d, "memory.reserved", 643825664ULL);
    memory->used = integer(d, "memory.used", 75377410048ULL);
    memory->free = memory->total - memory->reserved - memory->used;
    return OK;
}
int nvmlDeviceGetMemoryInfo(struct device *d, Memory *memory) {
    DEVICE(d);
    memory->total = integer(d, "memory.total", 150754820096ULL);
    memory->used = integer(d, "memory.reserved", 643825664ULL) + integer(d, "memory.used", 75377410048ULL);
    memory->free = memory->total - memory->used;
    return OK;
}
int nvmlDeviceGetUtilizationRates(struct device *d, Utilization *rates) {
    DEVICE(d); NOT_ON_MIG(d);
    rates->gpu = (uint)integer(d, "utilization", 87);
    rates->memory = (uint)integer(d, "utilization.memory", 34);
    return OK;
}
int nvmlDeviceGetTemperatureV(struct device *d, Temperature *temperature) {
    if (temperature->version != 0x0100000C) return VERSION_MISMATCH;
    DEVICE(d);
    temperature->temperature = (int)integer(d, "temperature", 52);
    return OK;
}

#define NUMBER(name, key, otherwise) \
    int name(struct device *d, uint *value) { DEVICE(d); NOT_ON_MIG(d); *value = (uint)integer(d, key, otherwise); return OK; }
NUMBER(nvmlDeviceGetPowerUsage, "power", 627000)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, "power.limit", 700000)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, "pcie.generation", 5)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, "pcie.width", 16)

int nvmlDeviceGetTemperature(struct device *d, int sensor, uint *value) {
    DEVICE(d);
    if (sensor) return INVALID_ARGUMENT;
    *value = (uint)integer(d, "temperature", 52);
    return OK;
}
int nvmlDeviceGetClockInfo(struct device *d, int type, uint *mhz) {
    DEVICE(d);
    if (type < 0 || type > 3) return INVALID_ARGUMENT;
    *mhz = (uint)(type == 2 ? integer(d, "clock.memory", 3201) : integer(d, "clock.sm", 1980));
    return OK;
}
int nvmlDeviceGetCurrentClocksEventReasons(struct device *d, ull *bits) {
    DEVICE(d); *bits = integer(d, "reasons", 4); return OK;
}
int nvmlDeviceGetTotalEnergyConsumption(struct device *d, ull *mj) {
    DEVICE(d); *mj = integer(d, "field.83", 1234567000ULL); return OK;
}

/* field, type (1 uint, 3 ull), value: an H200 under load */
static const struct { uint field, type; ull value; } fields[] = {
    {5, 3, 2}, {6, 3, 1}, {74, 3, 3000000000ULL}, {75, 3, 0}, {76, 3, 0}, {77, 3, 0}, {79, 3, 0}, {82, 1, 40},
    {83, 3, 1234567000ULL}, {94, 1, 4}, {138, 3, 1000}, {139, 3, 2000}, {142, 1, 7}, {143, 1, 0}, {144, 1, 0},
    {145, 1, 0}, {185, 1, 627000}, {186, 1, 626000}, {190, 1, 700000}, {197, 3, 5000}, {198, 3, 6000}, {230, 1, 0},
    {269, 3, 1500000000ULL}, {270, 3, 0}, {271, 3, 0},
};
int nvmlDeviceGetFieldValues(struct device *d, int count, FieldValue *values) {
    DEVICE(d);
    for (int i = 0; i < count; i++) {
        FieldValue *v = &values[i];
        char key[32], sub[48];
        v->ret = NOT_SUPPORTED;
        for (size_t k = 0; k < sizeof fields / sizeof *fields; k++) {
            if (fields[k].field != v->field) continue;
            snprintf(key, sizeof key, "field.%u", v->field);
            v->type = fields[k].type;
            v->value.u = integer(d, key, fields[k].value);
            snprintf(sub, sizeof sub, "%s.type", key);
            v->type = (uint)integer(d, sub, v->type);
            snprintf(sub, sizeof sub, "%s.ret", key);
            v->ret = (uint)integer(d, sub, OK);
        }
    }
    return OK;
}

/* -- the slow tier -- */
int nvmlDeviceGetComputeRunningProcesses_v3(struct device *d, uint *count, ProcessInfo *infos) {
    DEVICE(d);
    char list[1024] = "4711:1073741824,4712:none,4713:4096";
    text(d, "processes", list, sizeof list);
    uint found = 0;
    for (char *at = list; *at; at += strcspn(at, ","), at += *at == ',') {
        if (infos && found < *count) {
            char *colon = strchr(at, ':');
            infos[found] = (ProcessInfo){ (uint)atoi(at), strncmp(colon + 1, "none", 4) ? strtoull(colon + 1, NULL, 0)
                                          : ~0ULL, ~0u, ~0u };
        }
        found++;
    }
    int small = found > *count;
    *count = found;
    return small ? INSUFFICIENT_SIZE : OK;
}
int nvmlDeviceGetPcieThroughput(struct device *d, int direction, uint *value) {
    DEVICE(d); *value = direction ? 2000 : 1000; return OK;
}
int nvmlDeviceGetFanSpeed_v2(struct device *d, uint fan, uint *percent) {
    DEVICE(d);
    if (fan) return INVALID_ARGUMENT;
    *percent = (uint)integer(d, "fan", 30);
    return OK;
}
int nvmlDeviceGetTemperatureThreshold(struct device *d, int kind, uint *value) {
    DEVICE(d); *value = kind == 0 ? 95 : 88; return OK;
}
#define CODEC(name, key) \
    int name(struct device *d, uint *percent, uint *period) { DEVICE(d); *percent = (uint)integer(d, key, 5); \
        *period = 167000; return OK; }
CODEC(nvmlDeviceGetEncoderUtilization, "encoder")
CODEC(nvmlDeviceGetDecoderUtilization, "decoder")
int nvmlDeviceGetMemoryErrorCounter(struct device *d, int kind, int counter, int location, ull *count) {
    DEVICE(d);
    if (kind > 1 || counter > 1 || location > 7) return INVALID_ARGUMENT;
    *count = (ull)(kind * 10 + location);
    return OK;
}

/* -- GPM -- */
int nvmlGpmQueryDeviceSupport(struct device *d, GpmSupport *support) {
    if (support->version != 1) return VERSION_MISMATCH;
    DEVICE(d); support->supported = (uint)integer(d, "gpm", 1); return OK;
}
int nvmlGpmSampleAlloc(GpmSample **sample) { ENTER(); *sample = calloc(1, sizeof **sample); return OK; }
int nvmlGpmSampleFree(GpmSample *sample) { ENTER(); free(sample); return OK; }
int nvmlGpmSampleGet(struct device *d, GpmSample *sample) {
    DEVICE(d); NOT_ON_MIG(d);
    if (!sample) return INVALID_ARGUMENT;
    *sample = (GpmSample){ d, 1 };
    return OK;
}
int nvmlGpmMigSampleGet(struct device *d, uint instance, GpmSample *sample) {
    DEVICE(d); NOT_ON_MIG(d);
    if (!sample || !instance) return INVALID_ARGUMENT;
    *sample = (GpmSample){ d, (int)instance + 1 };
    return OK;
}
int nvmlGpmMetricsGet(GpmMetricsGet *query) {
    if (query->version != 1) return VERSION_MISMATCH;
    ENTER();
    const GpmSample *a = query->first, *b = query->second;
    if (!a || !b || a == b || !a->taken || a->taken != b->taken || a->device != b->device) return INVALID_ARGUMENT;
    for (uint i = 0; i < query->count; i++) {
        char key[32], sub[40];
        snprintf(key, sizeof key, "gpm.%u", query->metrics[i].id);
        snprintf(sub, sizeof sub, "%s.ret", key);
        query->metrics[i].ret = (uint)integer(a->device, sub, OK);
        query->metrics[i].value = number(a->device, key, query->metrics[i].id);
    }
    return OK;
}

/* -- events -- */
int nvmlEventSetCreate(ull **set) { ENTER(); *set = calloc(1, sizeof **set); return OK; }
int nvmlEventSetFree(ull *set) { ENTER(); free(set); return OK; }
int nvmlDeviceRegisterEvents(struct device *d, ull types, ull *set) {
    DEVICE(d);
    return types == 8 && set ? OK : INVALID_ARGUMENT;
}
int nvmlEventSetWait_v2(ull *set, EventData *data, uint ms) {
    ENTER();
    for (uint waited = 0; waited <= ms; waited += 5) {
        ull serial = integer(NULL, "xid.serial", 0);
        if (serial > *set) {
            *set = serial;
            *data = (EventData){ &devices[0], 8, integer(NULL, "xid", 79), ~0u, ~0u };
            return OK;
        }
        usleep(5000);
        read_script();
    }
    return TIMEOUT;
}
