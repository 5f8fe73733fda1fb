struct Observers;
