/* Preloaded into a program: logs what a power cut would undo, and makes file operations fail.

   It concerns paths below the directory SHIM_ROOT only, as the program names them.

   SHIM_LOG    file that gets a line for each change, in their order:
                 F inode size mtime_ns       a file or a directory was flushed in this state
                 C dir path                  a name was made in the directory with inode dir
                 R dir saved from to         a name was changed; what it replaced is at SAVED
                 U dir saved path            a name was removed; what it named is at SAVED
                 D dir path                  a directory was removed
   SHIM_SAVED  directory, on the same file system, for what was replaced or removed: 1, 2, ...
   SHIM_FAULT  OPERATION:NUMBER:ERRNO: from the NUMBER-th call of OPERATION (write, read, fsync,
               rename, open, mkdir) on, that fails; for bytes, from NUMBER written bytes on. With !
               behind ERRNO, only that one fails. */

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

/* Whether a call fails, by SHIM_FAULT; errno is set. */
static int fails(const char *operation, long amount) {
  static atomic_long done;
  const char *fault = getenv("SHIM_FAULT");
  char name[16], once = 0;
  long number, before;
  int error;
  if (!fault) return 0;
  if (sscanf(fault, "%15[a-z]:%ld:%d%c", name, &number, &error, &once) < 3) abort();
  if (strcmp(name, operation)) return 0;
  before = atomic_fetch_add(&done, amount);
  if (before + amount < number || (once && before >= number)) return 0;
  errno = error;
  return 1;
}

/* -- Contents -- */

static int refused(int file, const char *operation, long bytes) {
  char path[PATH_MAX];
  return getenv("SHIM_FAULT") && ours(path, file, NULL) &&
         (fails(operation, 1) || (bytes && fails("bytes", bytes)));
}

static size_t total(const struct iovec *parts, int n) {
  size_t sum = 0;
  while (n--) sum += parts[n].iov_len;
  return sum;
}

#define CONTENT(type, name, operation, bytes, declared, passed) \
  type name declared { return refused(file, operation, bytes) ? -1 : REAL(name) passed; }

CONTENT(ssize_t, write, "write", n, (int file, const void *x, size_t n), (file, x, n))
CONTENT(ssize_t, pwrite, "write", n, (int file, const void *x, size_t n, off_t at), (file, x, n, at))
CONTENT(ssize_t, pwrite64, "write", n, (int file, const void *x, size_t n, off64_t at), (file, x, n, at))
CONTENT(ssize_t, writev, "write", total(x, n), (int file, const struct iovec *x, int n), (file, x, n))
CONTENT(ssize_t, pwritev, "write", total(x, n), (int file, const struct iovec *x, int n, off_t at), (file, x, n, at))
CONTENT(ssize_t, pwritev64, "write", total(x, n), (int file, const struct iovec *x, int n, off64_t at), (file, x, n, at))
CONTENT(ssize_t, read, "read", 0, (int file, void *x, size_t n), (file, x, n))
CONTENT(ssize_t, pread, "read", 0, (int file, void *x, size_t n, off_t at), (file, x, n, at))
CONTENT(ssize_t, pread64, "read", 0, (int file, void *x, size_t n, off64_t at), (file, x, n, at))
CONTENT(ssize_t, readv, "read", 0, (int file, const struct iovec *x, int n), (file, x, n))

static int flushed(int file, int (*flush)(int)) {
  char path[PATH_MAX];
  struct stat s;
  if (refused(file, "fsync", 0)) return -1;
  if (!ours(path, file, NULL) || fstat(file, &s)) return flush(file);
  if (flush(file)) return -1;
  note("F %lu %ld %ld\n", s.st_ino, (long)s.st_size,
       s.st_mtim.tv_sec * 1000000000L + s.st_mtim.tv_nsec);
  return 0;
}

int fsync(int file) { return flushed(file, REAL(fsync)); }
int fdatasync(int file) { return flushed(file, REAL(fdatasync)); }

/* -- Names -- */

static int opened(int dir, const char *name, int flags, mode_t mode, int (*call)(int, const char *, int, ...)) {
  char path[PATH_MAX];
  struct stat s;
  if (!ours(path, dir, name)) return call(dir, name, flags, mode);
  if (fails("open", 1)) return -1;
  int kept = errno, new = (flags & O_CREAT) && lstat(path, &s);
  errno = kept;
  int file = call(dir, name, flags, mode);
  if (file >= 0 && new) note("C %lu %s\n", directory_of(path), path);
  return file;
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
  if (!ours(path, dir, name)) return REAL(mkdirat)(dir, name, mode);
  if (fails("mkdir", 1)) return -1;
  int result = REAL(mkdirat)(dir, name, mode);
  if (!result) note("C %lu %s\n", directory_of(path), path);
  return result;
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
  char old[PATH_MAX], new[PATH_MAX];
  int known = ours(old, from_dir, from);
  if (!(ours(new, to_dir, to) && known)) return REAL(renameat2)(from_dir, from, to_dir, to, flags);
  if (fails("rename", 1)) return -1;
  int saved = keep(new), result = REAL(renameat2)(from_dir, from, to_dir, to, flags);
  if (!result) note("R %lu %d %s\t%s\n", directory_of(new), saved, old, new);
  return result;
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) { return renameat2(from_dir, from, to_dir, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int dir, const char *name, int flags) {
  char path[PATH_MAX];
  if (!ours(path, dir, name)) return REAL(unlinkat)(dir, name, flags);
  unsigned long parent = directory_of(path);
  int saved = flags & AT_REMOVEDIR ? 0 : keep(path), result = REAL(unlinkat)(dir, name, flags);
  if (!result && flags & AT_REMOVEDIR) note("D %lu %s\n", parent, path);
  else if (!result) note("U %lu %d %s\n", parent, saved, path);
  return result;
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int remove(const char *name) {
  struct stat s;
  return unlinkat(AT_FDCWD, name, !lstat(name, &s) && S_ISDIR(s.st_mode) ? AT_REMOVEDIR : 0);
}
