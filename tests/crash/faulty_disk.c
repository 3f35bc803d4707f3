/* A disk that fails at one chosen operation: loaded before the C library, it counts the operations below one folder and
 * strikes at one of them. Everything else, and every process that does not ask for it, is left alone.
 *
 * What a power cut would lose is known too: how long each file was when it was last flushed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FAIL, SIGNAL, TEAR, POWER_CUT };

static char root[4096];
static long count, strike_at;
static int kind, value, stays, trace = -1, active;
static __thread int inside;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define UNFLUSHED 4096
static struct { char path[1024]; off_t flushed; } unflushed[UNFLUSHED];
static int unflushed_count;

/* below: the folder; at: the operation, 0 for none; what happens there, with its error number or signal; whether it goes
 * on to fail after that; trace_to: a file descriptor for a line an operation, or -1. */
void faulty_disk(const char *below, long at, int what, int number, int on, int trace_to) {
    strncpy(root, below, sizeof root - 1);
    count = unflushed_count = 0;
    strike_at = at, kind = what, value = number, stays = on, trace = trace_to;
    active = 1;
}

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

/* ---- paths ---- */

static int of_descriptor(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = syscall(SYS_readlink, link, path, 4095);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

static int absolute(int folder, const char *name, char *path) {
    char base[4096];
    if (!name) return 0;
    if (name[0] == '/') { snprintf(path, 4096, "%s", name); return 1; }
    if (folder == AT_FDCWD) { if (syscall(SYS_getcwd, base, sizeof base) < 0) return 0; }
    else if (!of_descriptor(folder, base)) return 0;
    return snprintf(path, 4096, "%.2000s/%.2000s", base, name) < 4096;
}

static int is_below(const char *path) {
    size_t length = strlen(root);
    return !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

/* ---- what a power cut would lose ---- */

static int place_of(const char *path) {
    for (int at = 0; at < unflushed_count; at++) if (!strcmp(unflushed[at].path, path)) return at;
    return -1;
}

static void forget(const char *path) {
    int at = place_of(path);
    if (at >= 0) unflushed[at] = unflushed[--unflushed_count];
}

static void remember(const char *path, off_t flushed) {
    if (place_of(path) >= 0 || unflushed_count == UNFLUSHED) return;
    snprintf(unflushed[unflushed_count].path, sizeof unflushed[0].path, "%.1000s", path);
    unflushed[unflushed_count++].flushed = flushed;
}

static void move(const char *from, const char *to) {
    size_t length = strlen(from);
    forget(to);
    for (int at = 0; at < unflushed_count; at++) {
        char *path = unflushed[at].path, moved[4096];
        if (strncmp(path, from, length) || (path[length] && path[length] != '/')) continue;
        snprintf(moved, sizeof moved, "%.1000s%.1000s", to, path + length);
        snprintf(path, sizeof unflushed[0].path, "%.1000s", moved);
    }
}

static void cut_power(void) {
    for (int at = 0; at < unflushed_count; at++) syscall(SYS_truncate, unflushed[at].path, unflushed[at].flushed);
    syscall(SYS_kill, getpid(), SIGKILL);
}

/* ---- the strike ---- */

/* 0 to go on, -1 to fail with errno set, 1 to write half and be killed. */
static int meets(const char *operation, const char *path, int writes) {
    if (!active || inside || !is_below(path)) return 0;
    inside = 1;
    pthread_mutex_lock(&lock);
    long now = ++count;
    int result = 0;
    if (trace >= 0) {
        char line[4300];
        int length = snprintf(line, sizeof line, "%ld\t%s\t%d\t%s\n", now, operation, writes, path);
        syscall(SYS_write, trace, line, length);
    }
    if (now == strike_at || (strike_at && stays && now > strike_at && writes)) {
        if (kind == FAIL) { errno = value; result = -1; }
        else if (kind == SIGNAL) syscall(SYS_kill, getpid(), value);
        else if (kind == TEAR) result = 1;
        else cut_power();
    }
    pthread_mutex_unlock(&lock);
    inside = 0;
    return result;
}

static void before_write(int descriptor, const char *path) {
    struct stat there;
    if (kind != POWER_CUT || !is_below(path) || fstat(descriptor, &there)) return;
    pthread_mutex_lock(&lock);
    remember(path, there.st_size);
    pthread_mutex_unlock(&lock);
}

static void after_flush(const char *path) {
    pthread_mutex_lock(&lock);
    forget(path);
    pthread_mutex_unlock(&lock);
}

/* ---- opening ---- */

static int opening(int folder, const char *name, int flags) {
    char path[4096];
    struct stat there;
    if (!active || !absolute(folder, name, path) || !is_below(path)) return 0;
    int writes = (flags & O_ACCMODE) != O_RDONLY;
    int result = meets(writes ? "open to write" : "open", path, writes);
    if (!result && writes && (flags & O_TRUNC) && kind == POWER_CUT && !fstatat(AT_FDCWD, path, &there, 0)) {
        pthread_mutex_lock(&lock);
        forget(path);
        remember(path, 0);
        pthread_mutex_unlock(&lock);
    }
    return result < 0 ? -1 : 0;
}

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }

#define OPEN(NAME) \
    int NAME(const char *name, int flags, ...) { \
        MODE_OF(flags) \
        if (opening(AT_FDCWD, name, flags)) return -1; \
        return ((int (*)(const char *, int, ...))real(#NAME))(name, flags, mode); \
    }
#define OPENAT(NAME) \
    int NAME(int folder, const char *name, int flags, ...) { \
        MODE_OF(flags) \
        if (opening(folder, name, flags)) return -1; \
        return ((int (*)(int, const char *, int, ...))real(#NAME))(folder, name, flags, mode); \
    }
#define FOPEN(NAME) \
    FILE *NAME(const char *name, const char *how) { \
        int flags = how[0] == 'r' ? (strchr(how, '+') ? O_RDWR : O_RDONLY) : O_WRONLY | (how[0] == 'w' ? O_TRUNC : 0); \
        if (opening(AT_FDCWD, name, flags)) return NULL; \
        return ((FILE *(*)(const char *, const char *))real(#NAME))(name, how); \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) FOPEN(fopen) FOPEN(fopen64)

/* ---- reading and writing ---- */

static void half(int descriptor, const void *buffer, size_t size) {
    syscall(SYS_write, descriptor, buffer, size / 2);
    syscall(SYS_kill, getpid(), SIGKILL);
}

ssize_t write(int descriptor, const void *buffer, size_t size) {
    char path[4096];
    if (active && !inside && of_descriptor(descriptor, path)) {
        before_write(descriptor, path);
        int result = meets("write", path, 1);
        if (result < 0) return -1;
        if (result > 0) half(descriptor, buffer, size);
    }
    return syscall(SYS_write, descriptor, buffer, size);
}

ssize_t writev(int descriptor, const struct iovec *parts, int many) {
    char path[4096];
    if (active && !inside && of_descriptor(descriptor, path)) {
        before_write(descriptor, path);
        int result = meets("write", path, 1);
        if (result < 0) return -1;
        if (result > 0) half(descriptor, parts[0].iov_base, parts[0].iov_len);
    }
    return syscall(SYS_writev, descriptor, parts, many);
}

ssize_t read(int descriptor, void *buffer, size_t size) {
    char path[4096];
    if (active && !inside && of_descriptor(descriptor, path) && meets("read", path, 0) < 0) return -1;
    return syscall(SYS_read, descriptor, buffer, size);
}

#define ON_DESCRIPTOR(NAME, CALL, OPERATION, MORE, AFTER) \
    int NAME(int descriptor MORE) { \
        char path[4096] = ""; \
        if (active && !inside && of_descriptor(descriptor, path)) { \
            if (meets(OPERATION, path, 1) < 0) return -1; \
        } \
        int result = syscall(CALL); \
        if (!result && active && *path) AFTER; \
        return result; \
    }
#define COMMA ,
ON_DESCRIPTOR(fsync, SYS_fsync COMMA descriptor, "flush", , after_flush(path))
ON_DESCRIPTOR(fdatasync, SYS_fdatasync COMMA descriptor, "flush", , after_flush(path))
ON_DESCRIPTOR(ftruncate, SYS_ftruncate COMMA descriptor COMMA size, "cut", COMMA off_t size, (void)0)
ON_DESCRIPTOR(ftruncate64, SYS_ftruncate COMMA descriptor COMMA size, "cut", COMMA off_t size, (void)0)

/* ---- folders ---- */

static int on_name(const char *operation, int folder, const char *name) {
    char path[4096];
    return active && !inside && absolute(folder, name, path) && meets(operation, path, 1) < 0 ? -1 : 0;
}

static int moving(int from_folder, const char *from, int to_folder, const char *to) {
    char there[4096], here[4096];
    int known = active && !inside && absolute(from_folder, from, there) && absolute(to_folder, to, here);
    if (known && meets("rename", here, 1) < 0) return -1;
    int result = syscall(SYS_renameat2, from_folder, from, to_folder, to, 0);
    if (known && !result) {
        pthread_mutex_lock(&lock);
        move(there, here);
        pthread_mutex_unlock(&lock);
    }
    return result;
}

int rename(const char *from, const char *to) { return moving(AT_FDCWD, from, AT_FDCWD, to); }
int renameat(int ff, const char *from, int tf, const char *to) { return moving(ff, from, tf, to); }

static int removing(int folder, const char *name, int flags) {
    char path[4096];
    if (on_name(flags ? "remove the folder" : "remove", folder, name)) return -1;
    int result = syscall(SYS_unlinkat, folder, name, flags);
    if (!result && active && absolute(folder, name, path)) after_flush(path);
    return result;
}

int unlink(const char *name) { return removing(AT_FDCWD, name, 0); }
int unlinkat(int folder, const char *name, int flags) { return removing(folder, name, flags); }
int rmdir(const char *name) { return removing(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdir(const char *name, mode_t mode) {
    return on_name("make the folder", AT_FDCWD, name) ? -1 : syscall(SYS_mkdirat, AT_FDCWD, name, mode);
}
int mkdirat(int folder, const char *name, mode_t mode) {
    return on_name("make the folder", folder, name) ? -1 : syscall(SYS_mkdirat, folder, name, mode);
}
