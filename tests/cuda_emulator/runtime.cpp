// Runs one block of CUDA threads after another, each thread on a stack of its own.
//
// Threads switch at barriers alone, so between two barriers they run one by one in a chosen order.
// In check mode the kernel was compiled with the calls of ThreadSanitizer and
// UndefinedBehaviorSanitizer but is not linked with those libraries: the functions are here and
// apply CUDA's rules. Two accesses to one place, one of them a write, must be of the same thread or
// have a barrier of their block in between. Memory is sequentially consistent here, blocks never
// run at the same time.
#include <sys/mman.h>
#include <ucontext.h>

#include <csetjmp>
#include <cstdarg>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "device.h"

uint3 threadIdx, blockIdx, blockDim, gridDim;
__attribute__((aligned(16))) unsigned char shared_memory[228 * 1024];
// First and last byte of this library; were they not hidden, those of another might be found.
extern "C" __attribute__((visibility("hidden"))) char __ehdr_start, _end;

namespace {

constexpr size_t kStack = 128 * 1024;
constexpr size_t kMaxErrors = 4;
constexpr unsigned kNone = ~0u;

enum class State { kReady, kWaiting, kDone };

struct Thread {
    char* stack;
    ucontext_t start;
    jmp_buf resume;
    bool started = false;
    State state = State::kReady;
    int line = 0;
    uint3 index = {};
};

// One access, enough of it to tell whether a later one is ordered after it.
struct Access {
    unsigned block = kNone, thread = 0, epoch = 0;
    bool others = false;  // Other threads made the same kind of access in this epoch.
};
struct Cell {
    Access write, read;
};
struct Region {
    uintptr_t begin, end;
    bool is_shared;
    std::vector<Cell> cells;  // One for every two bytes, the smallest element.
};

std::vector<Thread*> threads;
jmp_buf scheduler;
Thread* current = nullptr;
unsigned current_thread = 0, current_block = 0, epoch = 0;
emulator::Body kernel_body;
void* kernel_context;

std::vector<Region> regions;
std::vector<std::string> errors;
bool checking = false, stop = false;
int thread_order = 0;
size_t shared_bytes = 0;
long first_block = 0;

void report(bool fatal, const char* format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (errors.size() < kMaxErrors) errors.push_back(text);
    stop = stop || fatal || errors.size() == kMaxErrors;
}

void yield() {
    if (_setjmp(current->resume) == 0) _longjmp(scheduler, 1);
}

// A thread's stack serves one block after another.
void entry() {
    for (;;) {
        kernel_body(kernel_context);
        current->state = State::kDone;
        yield();
    }
}

void make_thread(Thread& thread) {
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = thread.stack;
    thread.start.uc_stack.ss_size = kStack;
    thread.start.uc_link = nullptr;
    makecontext(&thread.start, entry, 0);
    thread.started = false;
}

void resume(Thread& thread) {
    current = &thread;
    threadIdx = thread.index;
    if (_setjmp(scheduler) == 0) {
        if (thread.started) _longjmp(thread.resume, 1);
        thread.started = true;
        setcontext(&thread.start);
    }
    current = nullptr;
}

std::vector<unsigned> ordered(size_t count, unsigned seed) {
    std::vector<unsigned> order(count);
    for (size_t i = 0; i < count; ++i) order[i] = thread_order == 1 ? count - 1 - i : i;
    if (thread_order > 1)
        std::shuffle(order.begin(), order.end(), std::mt19937(thread_order + seed));
    return order;
}

// All threads wait or are done: let them pass if they wait at the same barrier.
void pass_barrier(size_t count) {
    size_t waiting = 0;
    int line = 0;
    for (size_t i = 0; i < count; ++i) {
        if (threads[i]->state != State::kWaiting) continue;
        if (waiting++ > 0 && threads[i]->line != line)
            return report(true, "divergent barrier: threads wait at lines %d and %d", line,
                          threads[i]->line);
        line = threads[i]->line;
    }
    if (waiting < count)
        return report(true, "barrier at line %d: %zu of %zu threads have left the kernel", line,
                      count - waiting, count);
    for (size_t i = 0; i < count; ++i) threads[i]->state = State::kReady;
    ++epoch;
}

void run_block(size_t count) {
    memset(shared_memory, 0xff, sizeof shared_memory);  // NaN in every type
    for (Region& region : regions)
        if (region.is_shared) region.cells.assign(region.cells.size(), Cell());
    epoch = 0;
    for (size_t i = 0; i < count; ++i) {
        Thread& thread = *threads[i];
        thread.state = State::kReady;
        thread.index = {unsigned(i % blockDim.x), unsigned(i / blockDim.x % blockDim.y),
                        unsigned(i / blockDim.x / blockDim.y)};
    }
    for (bool done = false; !done && !stop;) {
        for (unsigned i : ordered(count, epoch)) {
            if (threads[i]->state != State::kReady || stop) continue;
            current_thread = i;
            resume(*threads[i]);
        }
        done = true;
        for (size_t i = 0; i < count; ++i) done = done && threads[i]->state == State::kDone;
        if (!done && !stop) pass_barrier(count);
    }
    if (stop)
        for (size_t i = 0; i < count; ++i) make_thread(*threads[i]);
}

bool is_ordered(const Access& before) {
    if (before.block == kNone) return true;
    if (before.block != current_block) return false;
    return before.epoch != epoch || (before.thread == current_thread && !before.others);
}

void remember(Access& access) {
    const bool same_epoch = access.block == current_block && access.epoch == epoch;
    const bool others = same_epoch && (access.others || access.thread != current_thread);
    // Readers of several blocks stay in conflict with every later write.
    if (access.block != kNone && access.block != current_block) return;
    access = {current_block, current_thread, epoch, others};
}

// Report an access that is wrong; pc lets the caller find its line.
void complain(const char* what, const Region& region, uintptr_t address, void* pc) {
    report(false, "%s: %s byte %zu, block %u, thread %u @%zx", what,
           region.is_shared ? "shared" : "global", size_t(address - region.begin), current_block,
           current_thread, size_t((char*)pc - &__ehdr_start));
}

void check_cells(Region& region, uintptr_t address, size_t size, bool is_write, void* pc) {
    for (size_t i = (address - region.begin) / 2; i <= (address + size - 1 - region.begin) / 2;
         ++i) {
        Cell& cell = region.cells[i];
        const char* what = nullptr;
        if (!is_write && region.is_shared && cell.write.block == kNone) what = "uninitialised read";
        if (!is_ordered(cell.write))
            what = is_write ? "race: write after write" : "race: read after write";
        if (is_write && !is_ordered(cell.read)) what = "race: write after read";
        remember(is_write ? cell.write : cell.read);
        if (what) return complain(what, region, address, pc);
    }
}

void check(void* pointer, size_t size, bool is_write, void* pc) {
    if (!checking || !current) return;
    const uintptr_t address = uintptr_t(pointer);
    if (address - uintptr_t(current->stack) < kStack) return;
    for (Region& region : regions)
        if (address >= region.begin && address + size <= region.end)
            return check_cells(region, address, size, is_write, pc);
    const uintptr_t shared = uintptr_t(shared_memory);
    const bool in_shared = address - shared < sizeof shared_memory;
    const uintptr_t library = uintptr_t(&__ehdr_start);
    if (!in_shared && address - library < uintptr_t(&_end) - library) return;
    report(true, "out of bounds: %s of %zu bytes in %s memory, block %u, thread %u @%zx",
           is_write ? "write" : "read", size, in_shared ? "shared" : "global", current_block,
           current_thread, size_t((char*)pc - &__ehdr_start));
    yield();
}

struct SourceLocation {
    const char* file;
    uint32_t line, column;
};
void undefined(const char* what, const void* data) {
    report(false, "undefined behaviour: %s, line %u, block %u, thread %u", what,
           static_cast<const SourceLocation*>(data)->line, current_block, current_thread);
}

}  // namespace

void emulator::barrier(int line) {
    current->state = State::kWaiting;
    current->line = line;
    yield();
}

int emulator::run(Body body, void* context, const unsigned* grid, const unsigned* block) {
    kernel_body = body;
    kernel_context = context;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    const size_t count = size_t(block[0]) * block[1] * block[2];
    while (threads.size() < count) {
        void* stack =
            mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        threads.push_back(new Thread{static_cast<char*>(stack)});
        make_thread(*threads.back());
    }
    if (first_block >= long(grid[0])) report(true, "no such block: %ld", first_block);
    for (unsigned i : ordered(size_t(grid[0] - first_block), 0)) {
        if (stop) break;
        current_block = unsigned(first_block) + i;
        blockIdx = {current_block, 0, 0};
        run_block(count);
    }
    return errors.empty() ? 0 : 1;
}

#define EXPORT extern "C" __attribute__((visibility("default")))

// Settings of the next launch: order 0 is ascending, 1 descending, others random.
EXPORT void emulator_prepare(int order, int check_accesses, size_t shared, long first) {
    regions.clear();
    errors.clear();
    stop = false;
    thread_order = order;
    checking = check_accesses != 0;
    shared_bytes = shared;
    first_block = first;
    const uintptr_t begin = uintptr_t(shared_memory);
    if (checking && shared) regions.push_back({begin, begin + shared, true, {}});
    if (checking && shared) regions.back().cells.resize(shared / 2);
}
EXPORT void emulator_add_buffer(uintptr_t begin, size_t bytes) {
    if (!checking) return;
    regions.push_back({begin, begin + bytes, false, {}});
    regions.back().cells.resize((bytes + 1) / 2);
}
EXPORT size_t emulator_error_count() { return errors.size(); }
EXPORT const char* emulator_error(size_t i) { return errors[i].c_str(); }

#define PC __builtin_return_address(0)
#define ACCESS(n)                                                                 \
    extern "C" void __tsan_read##n(void* p) { check(p, n, false, PC); }           \
    extern "C" void __tsan_write##n(void* p) { check(p, n, true, PC); }           \
    extern "C" void __tsan_unaligned_read##n(void* p) { check(p, n, false, PC); } \
    extern "C" void __tsan_unaligned_write##n(void* p) { check(p, n, true, PC); }
ACCESS(1)
ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16) extern "C" void __tsan_read_range(void* p, size_t n) {
    check(p, n, false, PC);
}
extern "C" void __tsan_write_range(void* p, size_t n) { check(p, n, true, PC); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void* __tsan_memcpy(void* to, const void* from, size_t n) { return memcpy(to, from, n); }
extern "C" void* __tsan_memset(void* to, int value, size_t n) { return memset(to, value, n); }

#define UNDEFINED(name, what) \
    extern "C" void __ubsan_handle_##name(void* data) { undefined(what, data); }
UNDEFINED(add_overflow, "integer overflow in +")
UNDEFINED(sub_overflow, "integer overflow in -")
UNDEFINED(mul_overflow, "integer overflow in *")
UNDEFINED(negate_overflow, "integer overflow in negation")
UNDEFINED(divrem_overflow, "division by zero")
UNDEFINED(shift_out_of_bounds, "shift")
UNDEFINED(out_of_bounds, "array index out of bounds")
UNDEFINED(type_mismatch_v1, "misaligned or null pointer")
UNDEFINED(pointer_overflow, "pointer overflow")
