// The steps of a layer beside attention, each in one pass over memory: norm, gate, sum, rotation; and the product of matrices
// with few vectors, whose time is that of reading the matrices once. Sums of a row are taken in an order that depends on
// its width alone, so neither threads nor other rows show in the bits. Each thread has a run of its own (see `parallel`):
// memory is read and written at as many places as there are threads, and foreseen at each.

// Elements that a task reads or writes: enough to be worth handing out.
constexpr int64_t TASK = 16384;

LL_INLINE const Stored* at(const void* data, int64_t place) { return (const Stored*)data + place; }
LL_INLINE Stored* at(void* data, int64_t place) { return (Stored*)data + place; }

LL_INLINE void write_some(Numbers v, int64_t count, Stored* to) {
#if defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
    if (count >= LANES) return store(to, narrow(v));
#else
    if (count >= LANES) return store(to, v);
#endif
    alignas(64) Number some[LANES];
    store(some, v);
    write_row(some, count, to);
}

// --- A matrix and few vectors ----------------------------------------------------------------------------------------

constexpr int MATRIX_ROWS = 4;  // read at once, a quarter of the matrix apart: memory answers several places faster than one
constexpr int AHEAD_LINES = 16;  // that are asked for meanwhile
constexpr int VECTORS = 3;      // that share a reading from the nearest cache
constexpr int LINE = 64 / (int)sizeof(Stored);  // elements that memory gives at a time

struct ProductJob {
    const ll_product& product;
    const Number* vectors;  // (rows, columns), zeros beyond `inputs`
    int64_t columns, piece;  // of outputs, MATRIX_ROWS times
    int64_t first[LL_MAX_MATRICES + 1];  // the number of each matrix's first piece
};

// The outputs `output`, `output + apart`, ...
template <int ROWS, int OUTPUTS>
LL_INLINE void multiply_tile(const ProductJob& job, const ll_matrix& by, int64_t row, int64_t output, int64_t apart) {
    const ll_product& product = job.product;
    Numbers sums[OUTPUTS][ROWS];
    for (int m = 0; m < OUTPUTS; ++m)
        for (int r = 0; r < ROWS; ++r) sums[m][r] = Numbers{};
    const Stored* matrix = at(by.weight, output * by.weight_stride);
    const Number* vectors = job.vectors + row * job.columns;
    int64_t step_over = apart * by.weight_stride, ahead = AHEAD_LINES * LINE, c = 0;
    auto step = [&](int m, int64_t place, Numbers weight) {
#pragma GCC unroll 3
        for (int r = 0; r < ROWS; ++r)
            sums[m][r] = multiply_add(weight, load<Numbers>(vectors + r * job.columns + place), sums[m][r]);
    };
    for (; c + LINE <= product.inputs; c += LINE)
#pragma GCC unroll 4
        for (int m = 0; m < OUTPUTS; ++m) {
            const Stored* from = matrix + m * step_over + c;
            __builtin_prefetch(from + ahead);
#pragma GCC unroll 4
            for (int x = 0; x < LINE; x += LANES) step(m, c + x, read_vector(from + x));
        }
    for (; c < product.inputs; c += LANES)
        for (int m = 0; m < OUTPUTS; ++m)
            step(m, c, read_some(matrix + m * step_over + c, product.inputs - c));
    for (int r = 0; r < ROWS; ++r) {
        Number results[OUTPUTS];
        for (int m = 0; m < OUTPUTS; ++m) {
            results[m] = sum_of_lanes(sums[m][r]);
            if (by.bias) results[m] += read(at(by.bias, output + m * apart));
        }
        for (int m = 0; m < OUTPUTS; ++m)
            write_row(results + m, 1, at(by.result, (row + r) * by.outputs + output + m * apart));
    }
}

template <int OUTPUTS>
LL_INLINE void multiply_rows(const ProductJob& job, const ll_matrix& by, int64_t output, int64_t apart) {
    int64_t row = 0, rows = job.product.rows;
    for (; row + VECTORS <= rows; row += VECTORS) multiply_tile<VECTORS, OUTPUTS>(job, by, row, output, apart);
    if (rows - row == 2) multiply_tile<2, OUTPUTS>(job, by, row, output, apart);
    else if (rows - row == 1) multiply_tile<1, OUTPUTS>(job, by, row, output, apart);
}

inline void multiply_task(void* context, int64_t n) {
    const ProductJob& job = *(const ProductJob*)context;
    int64_t number = 0;
    while (n >= job.first[number + 1]) ++number;
    const ll_matrix& by = job.product.matrices[number];
    int64_t apart = by.outputs / MATRIX_ROWS;
    int64_t output = (n - job.first[number]) * job.piece, stop = least(output + job.piece, apart);
    for (; output < stop; ++output) multiply_rows<MATRIX_ROWS>(job, by, output, apart);
    if (stop == apart)  // the last piece
        for (output = MATRIX_ROWS * apart; output < by.outputs; ++output) multiply_rows<1>(job, by, output, 0);
}

inline int multiply(const ll_product& product) {
    int64_t columns = round_up(product.inputs, LANES), outputs = 0;
    Number* vectors = (Number*)scratch(sizeof(Number) * (size_t)(product.rows * columns));
    if (!vectors) return OUT_OF_MEMORY;
    for (int64_t r = 0; r < product.rows; ++r)
        read_row(at(product.states, r * product.state_stride), product.inputs, vectors + r * columns, columns);
    for (int64_t n = 0; n < product.count; ++n) outputs += product.matrices[n].outputs;
    // Several pieces for each thread, so that the last one is not waited for long; their number shows nowhere.
    int64_t piece = most<int64_t>(TASK / 4 / most<int64_t>(1, product.inputs), outputs / (8 * product.threads));
    piece = (most<int64_t>(1, piece) + MATRIX_ROWS - 1) / MATRIX_ROWS;
    ProductJob job{product, vectors, columns, piece, {}};
    for (int64_t n = 0; n < product.count; ++n)
        job.first[n + 1] = job.first[n] + most<int64_t>(1, (product.matrices[n].outputs / MATRIX_ROWS + piece - 1) / piece);
    parallel(product.threads, job.first[product.count], multiply_task, &job, product.threads);
    return DONE;
}

// --- Norm ------------------------------------------------------------------------------------------------------------

constexpr int64_t PARTS = 8;  // of the rows: each sums its share of the weight's gradient

struct NormJob {
    const ll_norm& norm;
    const Number* weight;  // offset included
    Number* sums;          // (PARTS, columns)
    int64_t columns, piece;
};

// f(first, v) of each vector of a row; sums over a row are kept in four parts.
template <class F>
LL_INLINE Number sum_along(int64_t width, F f) {
    Numbers parts[4] = {};
    int64_t d = 0;
    for (; d + 4 * LANES <= width; d += 4 * LANES)
        for (int p = 0; p < 4; ++p) parts[p] += f(d + p * LANES);
    for (int p = 0; d < width; d += LANES, ++p) parts[p] += f(d);
    return sum_of_lanes((parts[0] + parts[1]) + (parts[2] + parts[3]));
}

inline void norm_task(void* context, int64_t n) {
    const NormJob& job = *(const NormJob*)context;
    const ll_norm& norm = job.norm;
    for (int64_t row = n * job.piece, stop = least(row + job.piece, norm.rows); row < stop; ++row) {
        const Stored* states = at(norm.states, row * norm.state_stride);
        Stored* result = at(norm.result, row * norm.width);
        Number squares = sum_along(norm.width, [&](int64_t d) {
            Numbers x = read_some(states + d, norm.width - d);
            return x * x;
        });
        Number inverse = 1 / (Number)__builtin_sqrt(squares / (Number)norm.width + (Number)norm.epsilon);
        for (int64_t d = 0; d < norm.width; d += LANES) {
            Numbers x = read_some(states + d, norm.width - d);
            write_some(x * inverse * load<Numbers>(job.weight + d), norm.width - d, result + d);
        }
        if (norm.inverse) ((Number*)norm.inverse)[row] = inverse;
    }
}

// With h = grad * weight and i = inverse: grad_states = i h - x i^3 mean(h x), grad_weight = sum over rows of grad x i.
inline void norm_backward_task(void* context, int64_t n) {
    const NormJob& job = *(const NormJob*)context;
    const ll_norm& norm = job.norm;
    Number* sums = job.sums + n * job.columns;
    for (int64_t row = n * job.piece, stop = least(row + job.piece, norm.rows); row < stop; ++row) {
        const Stored *states = at(norm.states, row * norm.state_stride), *grad = at(norm.grad, row * norm.width);
        Number inverse = ((const Number*)norm.inverse)[row];
        Number along = 0;
        if (norm.grad_states)
            along = inverse * inverse * inverse / (Number)norm.width * sum_along(norm.width, [&](int64_t d) {
                return read_some(grad + d, norm.width - d) * load<Numbers>(job.weight + d) *
                       read_some(states + d, norm.width - d);
            });
        for (int64_t d = 0; d < norm.width; d += LANES) {
            Numbers x = read_some(states + d, norm.width - d), g = read_some(grad + d, norm.width - d) * inverse;
            if (norm.grad_states)
                write_some(g * load<Numbers>(job.weight + d) - x * along, norm.width - d,
                           at(norm.grad_states, row * norm.width) + d);
            if (norm.grad_weight) store(sums + d, multiply_add(g, x, load<Numbers>(sums + d)));
        }
    }
}

// The weight as numbers, and behind it zeros for the sums of `parts`.
inline bool prepare(NormJob& job, int64_t parts) {
    Number* memory = (Number*)scratch(sizeof(Number) * (size_t)((1 + parts) * job.columns));
    if (!memory) return false;
    const ll_norm& norm = job.norm;
    __builtin_memset(memory, 0, sizeof(Number) * (size_t)((1 + parts) * job.columns));
    read_row(at(norm.weight, 0), norm.width, memory, job.columns);
    for (int64_t d = 0; d < norm.width; ++d) memory[d] += (Number)norm.offset;
    job.weight = memory, job.sums = memory + job.columns;
    return true;
}

inline int norm(const ll_norm& norm) {
    NormJob job{norm, nullptr, nullptr, round_up(norm.width, LANES), most<int64_t>(1, TASK / norm.width)};
    if (!prepare(job, 0)) return OUT_OF_MEMORY;
    parallel(norm.threads, (norm.rows + job.piece - 1) / job.piece, norm_task, &job, norm.threads);
    return DONE;
}

inline int norm_backward(const ll_norm& norm) {
    NormJob job{norm, nullptr, nullptr, round_up(norm.width, LANES), (norm.rows + PARTS - 1) / PARTS};
    if (!prepare(job, PARTS)) return OUT_OF_MEMORY;
    int64_t parts = job.piece ? (norm.rows + job.piece - 1) / job.piece : 0;
    parallel(norm.rows * norm.width < TASK ? 1 : norm.threads, parts, norm_backward_task, &job);
    if (!norm.grad_weight) return DONE;
    for (int64_t part = 1; part < parts; ++part)
        for (int64_t d = 0; d < norm.width; ++d) job.sums[d] += job.sums[part * job.columns + d];
    write_row(job.sums, norm.width, at(norm.grad_weight, 0));
    return DONE;
}

// --- Gate ------------------------------------------------------------------------------------------------------------

// s = 1 / (1 + e^-x), and 1 - s to all its digits.
struct Sigmoid {
    Numbers value, rest;
    LL_INLINE explicit Sigmoid(Numbers x) {
        Numbers power = larger(spread(2 - (Number)EXPONENT_BIAS), x * LOG2_E);  // below it s is 0 to all digits
        Numbers e = exp2_of(-power);
        value = 1 / (1 + e), rest = e * value;
    }
};

inline void gate_task(void* context, int64_t n) {
    const ll_gate& job = *(const ll_gate*)context;
    Numbers linear = spread((Number)job.linear), cubic = spread((Number)job.cubic);
    for (int64_t i = n * TASK, stop = least(i + TASK, job.count); i < stop; i += LANES) {
        Numbers x = read_some(at(job.gate, i), stop - i), up = read_some(at(job.up, i), stop - i);
        Sigmoid s(x * multiply_add(cubic, x * x, linear));
        write_some(x * s.value * up, stop - i, at(job.result, i));
    }
}

// With u = linear x + cubic x^3 and s = sigmoid(u): (x s)' = s (1 + (1 - s) (linear x + 3 cubic x^3)).
inline void gate_backward_task(void* context, int64_t n) {
    const ll_gate& job = *(const ll_gate*)context;
    Numbers linear = spread((Number)job.linear), cubic = spread((Number)job.cubic);
    for (int64_t i = n * TASK, stop = least(i + TASK, job.count); i < stop; i += LANES) {
        Numbers x = read_some(at(job.gate, i), stop - i), up = read_some(at(job.up, i), stop - i);
        Numbers grad = read_some(at(job.grad, i), stop - i), slope = x * multiply_add(3 * cubic, x * x, linear);
        Sigmoid s(x * multiply_add(cubic, x * x, linear));
        write_some(grad * up * s.value * multiply_add(slope, s.rest, spread(1)), stop - i, at(job.grad_gate, i));
        write_some(grad * x * s.value, stop - i, at(job.grad_up, i));
    }
}

inline int gate(const ll_gate& job) {
    parallel(job.threads, (job.count + TASK - 1) / TASK, job.grad ? gate_backward_task : gate_task, (void*)&job, job.threads);
    return DONE;
}

inline void sum_task(void* context, int64_t n) {
    const ll_sum& job = *(const ll_sum*)context;
    for (int64_t i = n * TASK, stop = least(i + TASK, job.count); i < stop; i += LANES)
        write_some(read_some(at(job.left, i), stop - i) + read_some(at(job.right, i), stop - i), stop - i, at(job.result, i));
}

inline int sum(const ll_sum& job) {
    parallel(job.threads, (job.count + TASK - 1) / TASK, sum_task, (void*)&job, job.threads);
    return DONE;
}

// --- Rotation --------------------------------------------------------------------------------------------------------

struct RotationJob {
    const ll_rotation& rotation;
    int64_t piece;
};

inline void rotation_task(void* context, int64_t n) {
    const RotationJob& job = *(const RotationJob*)context;
    const ll_rotation& rotation = job.rotation;
    int64_t half = rotation.rotated / 2, token = n * job.piece;
    for (int64_t stop = least(token + job.piece, rotation.batch * rotation.length); token < stop; ++token) {
        int64_t b = token / rotation.length, l = token % rotation.length;
        int64_t place = b * rotation.row_stride + l * rotation.token_stride;
        const Stored *own = at(rotation.own, place), *partners = at(rotation.partners, place);
        for (int64_t h = 0; h < rotation.heads; ++h) {
            const Stored* from = line<const Stored>(rotation.states, b, h, l);
            Stored* to = line<Stored>(rotation.result, b, h, l);
            for (int64_t i = 0; i < half; i += LANES) {
                int64_t count = half - i;
                Numbers first = read_some(from + i, count), second = read_some(from + half + i, count);
                Numbers low = read_some(partners + i, count) * (Number)rotation.direction;
                Numbers high = read_some(partners + half + i, count) * (Number)rotation.direction;
                write_some(multiply_add(second, low, first * read_some(own + i, count)), count, to + i);
                write_some(multiply_add(first, high, second * read_some(own + half + i, count)), count, to + half + i);
            }
            for (int64_t d = rotation.rotated; d < rotation.width; ++d) to[d] = from[d];
        }
    }
}

inline int rotation(const ll_rotation& rotation) {
    RotationJob job{rotation, most<int64_t>(1, TASK / most<int64_t>(1, rotation.heads * rotation.width))};
    parallel(rotation.threads, (rotation.batch * rotation.length + job.piece - 1) / job.piece, rotation_task, &job, rotation.threads);
    return DONE;
}
