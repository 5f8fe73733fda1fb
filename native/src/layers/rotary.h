// Rotary position embeddings.
#pragma once

#include "../attention/problem.h"
#include "../library.h"
#include "../simd/elements.h"
#include "../simd/vector.h"
#include "rows.h"

namespace limelight::LL_NAMESPACE {
namespace {

struct RotationJob {
    const ll_rotation& rotation;
    int64_t piece;
};

inline void rotation_task(void* context, int64_t n) {
    const RotationJob& job = *(const RotationJob*)context;
    const ll_rotation& rotation = job.rotation;
    int64_t half = rotation.rotated / 2, token = n * job.piece;
    for (int64_t stop = min(token + job.piece, rotation.batch * rotation.length); token < stop; ++token) {
        int64_t b = token / rotation.length, l = token % rotation.length;
        int64_t place = b * rotation.row_stride + l * rotation.token_stride;
        const Stored *own = at(rotation.own, place), *partners = at(rotation.partners, place);
        for (int64_t h = 0; h < rotation.heads; ++h) {
            const Stored* from = row_at<const Stored>(rotation.states, b, h, l);
            Stored* to = row_at<Stored>(rotation.result, b, h, l);
            for (int64_t i = 0; i < half; i += LANES) {
                int64_t count = half - i;
                Vec first = read_partial(from + i, count), second = read_partial(from + half + i, count);
                Vec low = read_partial(partners + i, count) * (Float)rotation.direction;
                Vec high = read_partial(partners + half + i, count) * (Float)rotation.direction;
                write_partial(multiply_add(second, low, first * read_partial(own + i, count)), count, to + i);
                write_partial(multiply_add(first, high, second * read_partial(own + half + i, count)), count,
                              to + half + i);
            }
            for (int64_t d = rotation.rotated; d < rotation.width; ++d) to[d] = from[d];
        }
    }
}

inline int rotation(const ll_rotation& rotation) {
    RotationJob job{rotation, max<int64_t>(1, TASK / max<int64_t>(1, rotation.heads * rotation.width))};
    parallel(rotation.threads, (rotation.batch * rotation.length + job.piece - 1) / job.piece, rotation_task, &job,
             rotation.threads);
    return DONE;
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
