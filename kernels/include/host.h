// What CUDA sources need to be compiled by a C++ compiler for the host: threads of a block are coroutines, run in turns. For tests.
//
// All threads of a block that have not returned must wait at the same kind of place, or the program aborts: on a device that would hang
// or be undefined. Blocks run one after the other, so that shared memory is static.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include <ucontext.h>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct Three {
    unsigned x, y, z;
};
inline Three threadIdx, blockIdx, blockDim, gridDim;

namespace host {

enum Place { RUNNING, BARRIER, SHUFFLE, RETURNED };
struct Thread {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 18);
    Place place;
    double number;  // what it offers to its warp: holds a float too
};
inline std::vector<Thread> threads;
inline ucontext_t scheduler;
inline void (*body)(void**);
inline void** arguments;

inline void wait(Place place)
{
    Thread& self = threads[threadIdx.x];
    self.place = place;
    swapcontext(&self.context, &scheduler);
}

inline void begin()
{
    body(arguments);
    threads[threadIdx.x].place = RETURNED;
}

inline void run_block()
{
    for (unsigned n = 0; n < blockDim.x; ++n) {
        Thread& thread = threads[n];
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = &scheduler;
        thread.place = RUNNING;
        makecontext(&thread.context, begin, 0);
    }
    for (Place met = RUNNING; met != RETURNED;) {
        met = RETURNED;
        for (unsigned n = 0; n < blockDim.x; ++n) {
            if (threads[n].place == RETURNED)
                continue;
            threadIdx = {n, 0, 0};
            swapcontext(&scheduler, &threads[n].context);
            const Place place = threads[n].place;
            if (place != RETURNED && met != RETURNED && place != met) {
                std::fprintf(stderr, "threads of a block wait at different places\n");
                std::abort();
            }
            met = place == RETURNED ? met : place;
        }
    }
}

template <class... P, std::size_t... I> void call(void (*kernel)(P...), void** places, std::index_sequence<I...>)
{
    kernel(*static_cast<P*>(places[I])...);
}

template <auto kernel, class... P> void unpack(void (*)(P...), void (**to)(void**))
{
    *to = [](void** places) { call(static_cast<void (*)(P...)>(kernel), places, std::index_sequence_for<P...>{}); };
}

// sizes: blocks x, y, z and threads x; places: the addresses of the arguments, as for cuLaunchKernel
template <auto kernel> void launch(const unsigned* sizes, void** places)
{
    unpack<kernel>(kernel, &body);
    arguments = places;
    gridDim = {sizes[0], sizes[1], sizes[2]};
    blockDim = {sizes[3], 1, 1};
    if (threads.size() < blockDim.x)
        threads = std::vector<Thread>(blockDim.x);
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
                run_block();
}

}  // namespace host

inline void __syncthreads() { host::wait(host::BARRIER); }

template <class T> T __shfl_xor_sync(unsigned, T number, int bits)
{
    const unsigned self = threadIdx.x;
    host::threads[self].number = number;
    host::wait(host::SHUFFLE);  // until all have offered theirs
    const T other = static_cast<T>(host::threads[self ^ bits].number);
    host::wait(host::SHUFFLE);  // until all have read
    return other;
}
