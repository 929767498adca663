// Two functions that compute, one twice as long as the other, and both much longer than the clock's ticks are apart.
volatile unsigned long sum;
void turn(unsigned long times) { for (unsigned long i = 0; i < times; i++) sum += i * i; }
void compute_much(void) { turn(20000000); }
void compute_little(void) { turn(10000000); }
int main(void) { for (;;) { compute_much(); compute_little(); } }
