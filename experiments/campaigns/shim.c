/* Preloaded into a program: logs what a power cut would undo, and makes file operations fail.

   It concerns paths below the directory SHIM_ROOT only, as the program names them.

   SHIM_LOG    file that gets a line before each change, and after each flush, in their order:
                 F inode size mtime_ns       a file or a directory was flushed in this state
                 C dir path                  a name was made in the directory with inode dir
                 R dir saved from to         a name was changed; what it replaced is at SAVED
                 U dir saved path            a name was removed; what it named is at SAVED
                 D dir path                  a directory was removed
                 X operation                 a call was made to fail
                 N operation count           the program ended after so many calls
   SHIM_SAVED  directory, on the same file system, for what was replaced or removed: 1, 2, ...
   SHIM_FAULT  OPERATION:NUMBER:ERRNO: from the NUMBER-th call of OPERATION on, that fails; with !
               behind ERRNO, only that one. Operations: write, read, fsync, rename, change (whatever
               a read-only disk refuses), and bytes, whose NUMBER is that of written bytes. Without
               it, the log has no X and no N. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

/* The absolute path of a name, or of the file of a descriptor; whether it is below the root. */
static int ours(char *path, int dir, const char *name) {
  const char *root = getenv("SHIM_ROOT");
  char link[64], base[PATH_MAX] = "";
  int n;
  if (!root) return 0;
  if (!name || (name[0] != '/' && dir != AT_FDCWD)) {
    snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    n = readlink(link, base, sizeof base - 1);
    if (n < 0) return 0;
    base[n] = 0;
  } else if (name[0] != '/' && !getcwd(base, sizeof base)) {
    return 0;
  }
  if (!name) n = snprintf(path, PATH_MAX, "%s", base);
  else if (name[0] == '/') n = snprintf(path, PATH_MAX, "%s", name);
  else n = snprintf(path, PATH_MAX, "%s/%s", base, name);
  if (n >= PATH_MAX) return 0; /* the system refuses it, too */
  n = strlen(root);
  return !strncmp(path, root, n) && (path[n] == '/' || path[n] == 0);
}

/* The inode of the directory that a path lies in. */
static unsigned long directory_of(const char *path) {
  char parent[PATH_MAX];
  struct stat s;
  snprintf(parent, sizeof parent, "%s", path);
  char *slash = strrchr(parent, '/');
  if (!slash) return 0;
  *slash = 0;
  return stat(parent, &s) ? 0 : s.st_ino;
}

static void note(const char *format, ...) {
  const char *log = getenv("SHIM_LOG");
  char line[3 * PATH_MAX];
  va_list arguments;
  if (!log) return;
  int kept = errno;
  va_start(arguments, format);
  int n = vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  int file = REAL(open)(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (file >= 0) {
    if (REAL(write)(file, line, n) != n) abort();
    close(file);
  }
  errno = kept;
}

/* Keeps a file that is about to lose its name; the number of the copy, 0 if there was no file. */
static int keep(const char *path) {
  static atomic_int last;
  const char *saved = getenv("SHIM_SAVED");
  char copy[PATH_MAX];
  struct stat s;
  int kept = errno, number;
  if (!saved || lstat(path, &s) || S_ISDIR(s.st_mode)) { errno = kept; return 0; }
  do {
    number = ++last;
    snprintf(copy, sizeof copy, "%s/%d", saved, number);
  } while (link(path, copy) && errno == EEXIST);
  errno = kept;
  return number;
}

enum operation { WRITE, READ, FSYNC, RENAME, CHANGE, BYTES, OPERATIONS };
static const char *const names[] = {"write", "read", "fsync", "rename", "change", "bytes"};
static atomic_long counts[OPERATIONS];

/* Whether a call fails, by SHIM_FAULT; errno is set. */
static int fails(enum operation operation, long amount) {
  const char *fault = getenv("SHIM_FAULT");
  char name[16], once = 0;
  long number, before = atomic_fetch_add(&counts[operation], amount);
  int error;
  if (!fault) return 0;
  if (sscanf(fault, "%15[a-z]:%ld:%d%c", name, &number, &error, &once) < 3) abort();
  if (strcmp(name, names[operation]) || before + amount < number) return 0;
  if (once && before >= number) return 0;
  note("X %s\n", name);
  errno = error;
  return 1;
}

__attribute__((destructor)) static void end(void) {
  for (int i = 0; getenv("SHIM_FAULT") && i < OPERATIONS; i++) note("N %s %ld\n", names[i], counts[i]);
}

/* -- Contents -- */

static int refused(int file, enum operation operation, long bytes) {
  char path[PATH_MAX];
  return getenv("SHIM_FAULT") && ours(path, file, NULL) &&
         (fails(operation, 1) || (bytes && fails(BYTES, bytes)));
}

static size_t total(const struct iovec *parts, int n) {
  size_t sum = 0;
  while (n--) sum += parts[n].iov_len;
  return sum;
}

#define CONTENT(type, name, operation, bytes, declared, passed) \
  type name declared { return refused(file, operation, bytes) ? -1 : REAL(name) passed; }

CONTENT(ssize_t, write, WRITE, n, (int file, const void *x, size_t n), (file, x, n))
CONTENT(ssize_t, pwrite, WRITE, n, (int file, const void *x, size_t n, off_t at), (file, x, n, at))
CONTENT(ssize_t, pwrite64, WRITE, n, (int file, const void *x, size_t n, off64_t at), (file, x, n, at))
CONTENT(ssize_t, writev, WRITE, total(x, n), (int file, const struct iovec *x, int n), (file, x, n))
CONTENT(ssize_t, pwritev, WRITE, total(x, n), (int file, const struct iovec *x, int n, off_t at), (file, x, n, at))
CONTENT(ssize_t, pwritev64, WRITE, total(x, n), (int file, const struct iovec *x, int n, off64_t at), (file, x, n, at))
CONTENT(ssize_t, read, READ, 0, (int file, void *x, size_t n), (file, x, n))
CONTENT(ssize_t, pread, READ, 0, (int file, void *x, size_t n, off_t at), (file, x, n, at))
CONTENT(ssize_t, pread64, READ, 0, (int file, void *x, size_t n, off64_t at), (file, x, n, at))
CONTENT(ssize_t, readv, READ, 0, (int file, const struct iovec *x, int n), (file, x, n))

static int flushed(int file, int (*flush)(int)) {
  char path[PATH_MAX];
  struct stat s;
  if (refused(file, FSYNC, 0)) return -1;
  if (!ours(path, file, NULL) || fstat(file, &s)) return flush(file);
  if (flush(file)) return -1;
  note("F %lu %ld %ld\n", s.st_ino, (long)s.st_size,
       s.st_mtim.tv_sec * 1000000000L + s.st_mtim.tv_nsec);
  return 0;
}

int fsync(int file) { return flushed(file, REAL(fsync)); }
int fdatasync(int file) { return flushed(file, REAL(fdatasync)); }

/* -- Names -- */

/* Notes a name that is about to be made, unless it is there already. */
static void note_new(const char *path) {
  struct stat s;
  int kept = errno;
  if (lstat(path, &s)) note("C %lu %s\n", directory_of(path), path);
  errno = kept;
}

static int opened(int dir, const char *name, int flags, mode_t mode, int (*call)(int, const char *, int, ...)) {
  char path[PATH_MAX];
  if (ours(path, dir, name) && flags & (O_WRONLY | O_RDWR | O_CREAT)) {
    if (fails(CHANGE, 1)) return -1;
    if (flags & O_CREAT) note_new(path);
  }
  return call(dir, name, flags, mode);
}

#define MODE \
  mode_t mode = 0; \
  if (flags & (O_CREAT | __O_TMPFILE)) { \
    va_list rest; \
    va_start(rest, flags); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }

int open(const char *name, int flags, ...) { MODE return opened(AT_FDCWD, name, flags, mode, REAL(openat)); }
int open64(const char *name, int flags, ...) { MODE return opened(AT_FDCWD, name, flags, mode, REAL(openat64)); }
int openat(int dir, const char *name, int flags, ...) { MODE return opened(dir, name, flags, mode, REAL(openat)); }
int openat64(int dir, const char *name, int flags, ...) { MODE return opened(dir, name, flags, mode, REAL(openat64)); }
int creat(const char *name, mode_t mode) { return open(name, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int mkdirat(int dir, const char *name, mode_t mode) {
  char path[PATH_MAX];
  if (ours(path, dir, name)) {
    if (fails(CHANGE, 1)) return -1;
    note_new(path);
  }
  return REAL(mkdirat)(dir, name, mode);
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
  char old[PATH_MAX], new[PATH_MAX];
  if (ours(old, from_dir, from) && ours(new, to_dir, to)) {
    if (fails(CHANGE, 1) || fails(RENAME, 1)) return -1;
    note("R %lu %d %s\t%s\n", directory_of(new), keep(new), old, new);
  }
  return REAL(renameat2)(from_dir, from, to_dir, to, flags);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) { return renameat2(from_dir, from, to_dir, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int dir, const char *name, int flags) {
  char path[PATH_MAX];
  struct stat s;
  if (ours(path, dir, name)) {
    if (fails(CHANGE, 1)) return -1;
    int kept = errno, there = !lstat(path, &s);
    if (there && flags & AT_REMOVEDIR) note("D %lu %s\n", directory_of(path), path);
    else if (there) note("U %lu %d %s\n", directory_of(path), keep(path), path);
    errno = kept;
  }
  return REAL(unlinkat)(dir, name, flags);
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int remove(const char *name) {
  struct stat s;
  return unlinkat(AT_FDCWD, name, !lstat(name, &s) && S_ISDIR(s.st_mode) ? AT_REMOVEDIR : 0);
}
