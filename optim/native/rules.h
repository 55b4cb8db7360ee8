/* The rules for values of one type; included with REAL and NAME(rule) defined.
 *
 * Each is the twin of `optim/torch/<rule>.py` value by value: the same operations in the same order,
 * each rounded once, so that both give the same bits.
 */

static SIMD void NAME(sgd)(const struct line *line, int64_t from, int64_t to, const double *of)
{
    REAL *w = line->weight, *velocity = line->slots[0];
    const REAL *gradient = line->gradient;
    const REAL rate = of[0], decay = of[1], momentum = of[2];
    const int nesterov = of[3] != 0, decoupled = of[4] != 0;
    if (!velocity) {
        EACH_ALONE
        for (int64_t i = from; i < to; i++) {
            REAL g = decoupled ? gradient[i] : gradient[i] + decay * w[i];
            REAL direction = decoupled ? g + decay * w[i] : g;
            w[i] = w[i] - rate * direction;
        }
    } else if (nesterov) {
        EACH_ALONE
        for (int64_t i = from; i < to; i++) {
            REAL g = decoupled ? gradient[i] : gradient[i] + decay * w[i];
            velocity[i] = momentum * velocity[i] + g;
            REAL direction = g + momentum * velocity[i];
            direction = decoupled ? direction + decay * w[i] : direction;
            w[i] = w[i] - rate * direction;
        }
    } else {
        EACH_ALONE
        for (int64_t i = from; i < to; i++) {
            REAL g = decoupled ? gradient[i] : gradient[i] + decay * w[i];
            velocity[i] = momentum * velocity[i] + g;
            REAL direction = decoupled ? velocity[i] + decay * w[i] : velocity[i];
            w[i] = w[i] - rate * direction;
        }
    }
}

static SIMD void NAME(adamw)(const struct line *line, int64_t from, int64_t to, const double *of)
{
    REAL *w = line->weight, *first = line->slots[0], *second = line->slots[1];
    const REAL *gradient = line->gradient;
    const REAL rate = of[0], decay = of[1], beta1 = of[2], new1 = 1 - of[2];
    const REAL beta2 = of[3], new2 = 1 - of[3], epsilon = of[4], seen1 = of[6], seen2 = of[7];
    const int decoupled = of[5] != 0;
    EACH_ALONE
    for (int64_t i = from; i < to; i++) {
        REAL g = decoupled ? gradient[i] : gradient[i] + decay * w[i];
        first[i] = beta1 * first[i] + new1 * g;
        second[i] = beta2 * second[i] + new2 * (g * g);
        REAL direction = first[i] / seen1 / (SQRT(second[i] / seen2) + epsilon);
        direction = decoupled ? direction + decay * w[i] : direction;
        w[i] = w[i] - rate * direction;
    }
}

static SIMD void NAME(lion)(const struct line *line, int64_t from, int64_t to, const double *of)
{
    REAL *w = line->weight, *momentum = line->slots[0];
    const REAL *gradient = line->gradient;
    const REAL rate = of[0], decay = of[1], beta1 = of[2], new1 = 1 - of[2];
    const REAL beta2 = of[3], new2 = 1 - of[3];
    EACH_ALONE
    for (int64_t i = from; i < to; i++) {
        REAL ahead = beta1 * momentum[i] + new1 * gradient[i];
        REAL sign = (REAL)(ahead > 0) - (REAL)(ahead < 0);
        momentum[i] = beta2 * momentum[i] + new2 * gradient[i];
        w[i] = w[i] - rate * (sign + decay * w[i]);
    }
}

static SIMD void NAME(adan)(const struct line *line, int64_t from, int64_t to, const double *of)
{
    REAL *w = line->weight, *first = line->slots[0], *difference = line->slots[1];
    REAL *second = line->slots[2], *last = line->slots[3];
    const REAL *gradient = line->gradient;
    const REAL rate = of[0], decay = of[1], beta1 = of[2], new1 = 1 - of[2];
    const REAL beta2 = of[3], new2 = 1 - of[3], beta3 = of[4], new3 = 1 - of[4];
    const REAL epsilon = of[5], ahead = of[6], later = of[7], seen1 = of[9], seen3 = of[11];
    const REAL nesterov = ahead / (REAL)of[10];
    const int proximal = of[8] != 0;
    const REAL kept = 1 - rate * decay, shrunk = 1 + rate * decay;
    EACH_ALONE
    for (int64_t i = from; i < to; i++) {
        REAL g = gradient[i], change = later * (g - last[i]), look = g + ahead * change;
        first[i] = beta1 * first[i] + new1 * g;
        difference[i] = beta2 * difference[i] + new2 * change;
        second[i] = beta3 * second[i] + new3 * (look * look);
        last[i] = g;
        REAL root = SQRT(second[i] / seen3) + epsilon;
        REAL moved = rate * (first[i] / seen1 + nesterov * difference[i]) / root;
        w[i] = proximal ? (w[i] - moved) / shrunk : kept * w[i] - moved;
    }
}

static SIMD void NAME(sophia)(const struct line *line, int64_t from, int64_t to, const double *of)
{
    REAL *w = line->weight, *first = line->slots[0], *curvature = line->slots[1];
    const REAL *gradient = line->gradient, *estimate = line->estimate;
    const REAL rate = of[0], decay = of[1], beta1 = of[2], new1 = 1 - of[2];
    const REAL beta2 = of[3], new2 = 1 - of[3], gamma = of[4], epsilon = of[5], clip = of[6];
    const REAL decayed = rate * decay;
    EACH_ALONE
    for (int64_t i = from; estimate && i < to; i++)
        curvature[i] = beta2 * curvature[i] + new2 * estimate[i];
    EACH_ALONE
    for (int64_t i = from; i < to; i++) {
        first[i] = beta1 * first[i] + new1 * gradient[i];
        REAL divisor = gamma * curvature[i];
        REAL direction = first[i] / (divisor < epsilon ? epsilon : divisor);
        direction = direction > clip ? clip : direction;
        direction = direction < -clip ? -clip : direction;
        REAL kept = w[i] - decayed * w[i];
        w[i] = kept - rate * direction;
    }
}
