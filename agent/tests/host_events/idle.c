// A thread that waits again and again, and one that does nothing else. The C library may be built without frame pointers, which hides
// the function that calls it, here `nap`.
#include <pthread.h>
#include <unistd.h>
void nap(unsigned us) { usleep(us); }
void wait_long(void) { nap(1000000000); }
void *thread(void *argument) { for (;;) wait_long(); return argument; }
void wait_shortly(void) { nap(5000); }
int main(void) {
    pthread_t other;
    pthread_create(&other, 0, thread, 0);
    for (;;) wait_shortly();
}
